"""The config files: in the tree they lie in configs/ at its top; installed, here."""

from pathlib import Path
from typing import TYPE_CHECKING

__path__ = [str(Path(__file__).parents[2] / "configs")]

if TYPE_CHECKING:
    from typing import Any

    def __getattr__(name: str) -> Any: ...
