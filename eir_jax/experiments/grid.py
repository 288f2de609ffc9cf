"""Grids: files of named settings that a sweep runs."""

import ast
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from eir_jax.system.config import CONFIGS, find_config, importing_configs
from eir_jax.system.errors import UserError

FIGURE_KEYS = {"x", "lines", "rows", "baseline"}


class Grid(NamedTuple):
    """What a grid file says."""

    path: Path
    settings: dict[str, dict[str, Any]]
    """GRID: {name: {dotted key: value}}"""
    figures: dict[str, dict[str, Any]]
    """FIGURES: {file: {"x": key, "lines": key, "rows": [name], "baseline": name}}"""


def load_grid(name_or_file: str) -> Grid:
    """Read a grid file: GRID, and FIGURES where there is something to draw.

    Args:
      name_or_file: 'table1' is configs/grids/table1.py.

    Raises:
      UserError: no such file, it fails, or GRID or FIGURES are not of their form.
    """
    file = find_config(name_or_file, "grids")
    path = file
    if file.parent == CONFIGS / "grids":  # ours, wherever it lies
        path = Path("configs/grids") / file.name
    try:
        with importing_configs():
            found = runpy.run_path(str(file))
    except (Exception, SystemExit) as error:  # it may call sys.exit
        raise UserError(
            f"grid {path} fails: {type(error).__name__}: {error}"
        ) from error
    if twice := _keys_twice(file):
        raise UserError(f"{path} has {twice[0]!r} twice in one {{...}}; rename one")
    settings, figures = found.get("GRID"), found.get("FIGURES", {})
    if not isinstance(settings, dict) or not settings:
        raise UserError(f"{path} holds no GRID = {{name: {{key: value}}}}")
    for name, setting in settings.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+=-]*", name):
            raise UserError(
                f"{path}: {name!r} cannot be a folder's name; use letters, digits and "
                "_ . + = -"
            )
        if name in ("table.md", "table.json"):
            raise UserError(f"{path}: '{name}' is the sweep's own file; rename it")
        if not isinstance(setting, dict):
            raise UserError(f"{path}: '{name}' is no {{key: value}}")
        if "seed" in setting:
            raise UserError(f"{path}: '{name}' sets the seed; give --seeds")
    if not isinstance(figures, dict):
        raise UserError(f"{path}: FIGURES is no {{file: {{key: value}}}}")
    for file, figure in figures.items():
        if not isinstance(file, str) or not re.fullmatch(r"\w[\w.+=-]*\.png", file):
            raise UserError(f"{path}: {file!r} of FIGURES is no name of a .png")
        if not isinstance(figure, dict) or not (
            {"x", "rows"} <= figure.keys() <= FIGURE_KEYS and figure["rows"]
        ):
            raise UserError(
                f"{path}: {file} needs x and rows, and may have lines and baseline"
            )
        words = [value for key, value in figure.items() if key != "rows"]
        if not isinstance(figure["rows"], (list, tuple)) or not all(
            isinstance(word, str) for word in (*figure["rows"], *words)
        ):
            raise UserError(
                f"{path}: of {file} rows is a list of names, all others are names"
            )
        asked = [*figure["rows"], figure.get("baseline", figure["rows"][0])]
        if unknown := [name for name in asked if name not in settings]:
            raise UserError(f"{path}: {file} asks for {unknown[0]!r}, which GRID lacks")
    return Grid(path, settings, figures)


def _keys_twice(file: Path) -> list[Any]:
    """Return the keys that a {...} of a file holds twice: Python drops the first."""
    twice = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            twice += [key for key, number in Counter(keys).items() if number > 1]
    return twice
