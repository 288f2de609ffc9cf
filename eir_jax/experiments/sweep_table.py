"""What a sweep found: one table, and the curves over its coefficients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eir_jax.evaluation.scores import main_number
from eir_jax.experiments.coefficients import row_of
from eir_jax.experiments.grid import Grid
from eir_jax.experiments.runs import (
    FinishedRun,
    best_words,
    cell,
    markdown,
    summarise,
    title,
    values_of,
)
from eir_jax.system.files import replacing, write_json

Finished = dict[str, list[FinishedRun]]
CAPTION = (
    "Per cent, of the last epoch: mean ± standard deviation (n - 1) over n seeds. "
    "Best: of the epochs evaluated while training, by test accuracy; no result."
)


def write_table(folder: Path, grid: Grid, finished: Finished) -> Path:
    """Write `table.json` and `table.md`; return the latter's path.

    Args:
      folder: of the sweep.
      grid: its settings, a row each.
      finished: {name: its runs, a seed each}.

    Raises:
      UserError: the folder cannot be written.
    """
    rows = [table_row(name, grid, runs) for name, runs in finished.items()]
    write_json({"grid": str(grid.path), "rows": rows}, folder / "table.json")
    columns = list(dict.fromkeys(n for row in rows for n in _columns(row)))
    main = main_number(columns)
    head = ["", "settings", "n", *map(title, columns)]
    lines = [[*head, f"best {title(main)}"] if main else head]
    for row, runs in zip(rows, finished.values(), strict=True):
        settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items())
        numbers = [cell(values_of(runs, column), len(runs)) for column in columns]
        best = [best_words(runs)] if main else []
        lines.append([row["name"], settings, str(len(runs)), *numbers, *best])
    path = folder / "table.md"
    with replacing(path) as part:
        part.write_text("\n".join([CAPTION, "", *markdown(lines)]) + "\n")
    return path


def table_row(name: str, grid: Grid, runs: list[FinishedRun]) -> dict[str, Any]:
    """Return a setting's numbers over its seeds, shares in [0, 1]."""
    numbers = {}
    for number in dict.fromkeys(n for run in runs for n in run.numbers):
        numbers[number] = summarise(values_of(runs, number))._asdict()
    return {
        "name": name,
        "settings": grid.settings[name],
        "seeds": [run.settings["seed"] for run in runs],
        "numbers": numbers,
        "best": [run.best for run in runs],
    }


def draw_figures(folder: Path, grid: Grid, finished: Finished) -> Iterator[Path]:
    """Draw the grid's FIGURES into `folder`, as far as their runs are finished."""
    for file, figure in grid.figures.items():
        runs = [run for name in figure["rows"] for run in finished[name]]
        number = main_number(dict.fromkeys(n for run in runs for n in run.numbers))
        if number is None:
            continue
        runs = [run for run in runs if number in run.numbers]
        from eir_jax.figures.curves import draw_coefficient_curves

        x, lines = figure["x"], figure.get("lines")
        keys = [x, lines] if lines else [x]
        base = values_of(finished.get(figure.get("baseline", ""), []), number)
        draw_coefficient_curves(
            [row_of(run, keys, number) for run in runs],
            folder / file,
            x=x,
            y=number,
            group=lines,
            baseline=float(np.mean(base)) if base else None,
            xlabel=x,
            ylabel=title(number),
        )
        yield folder / file


def _columns(row: dict[str, Any]) -> list[str]:
    wanted = ("knn.", "linear.top-1", "retrieval.R@")
    return [number for number in row["numbers"] if number.startswith(wanted)]
