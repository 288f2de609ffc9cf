"""Files that are written whole or not at all."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eir_jax.system.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield another path of the same folder; what is written there becomes `path`.

    With an error, or where the process is killed, `path` stays as it was. The folder is
    made where there is none.

    Raises:
      OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that every reader takes: what is not finite is null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record whole or not at all.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        with replacing(path) as part:
            part.write_text(to_json(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
