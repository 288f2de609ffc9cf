"""Pictures of whole runs: t-SNE (Fig. 5), training curves, coefficients (Fig. 3, 4)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from eir_jax.figures.png import write_png
from eir_jax.system.errors import UserError

# Ten that stay apart for the colour-blind: nine of Paul Tol's "muted", and an orange.
COLOURS = ["#332288", "#e66100", "#44aa99", "#cc6677", "#88ccee"]
COLOURS += ["#999933", "#882255", "#117733", "#ddcc77", "#aa4499"]
DPI = 150
# Beside these panels there is one for each other number that a run has written.
PANELS = {
    "Loss and its terms": ("loss",),
    "kNN top-1 accuracy": ("knn/",),
    "R@K, each image among the others": ("retrieval/",),
    "Learning rate": ("learning_rate",),
    "Images per second": ("images_per_second",),
}
Curve = tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]


def read_curves(metrics_file: Path) -> tuple[str, dict[str, Curve]]:
    """Read a run's numbers over its epochs, or its steps where it wrote no epochs.

    Lines that are cut short, and numbers that are not finite, are left out.

    Returns:
        ("epoch" or "step", {name: (x, value)}); {"knn": {"5": .9}} is named "knn/5".

    Raises:
        UserError: the file is missing, cannot be read, or holds no numbers.
    """
    try:
        lines = Path(metrics_file).read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{metrics_file} cannot be read: {error}") from None
    records = [r for r in map(_numbers, lines) if "step" in r]
    axis = "epoch" if all("epoch" in r for r in records) else "step"
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name in record.keys() - {"epoch", "step"}:
            points.setdefault(name, []).append((record[axis], record[name]))
    if not points:
        raise UserError(f"{metrics_file} holds no metrics yet; train first")
    table = {name: np.array(sorted(points[name])).T for name in sorted(points)}
    return axis, {name: (x, value) for name, (x, value) in table.items()}


def draw_training_curves(metrics_file: Path, path: Path) -> None:
    """Draw what a run's metrics.jsonl holds, one panel a kind of number, as a PNG.

    Raises:
        UserError: the file is missing, cannot be read, or holds no numbers.
    """
    axis, curves = read_curves(metrics_file)
    panels: dict[str, dict[str, Curve]] = {}
    for title, wanted in PANELS.items():
        names = [*wanted, *sorted(curves, key=lambda name: (len(name), name))]
        found = [n for n in names if n in curves and n.startswith(wanted)]
        if found:
            panels[title] = {n: curves.pop(n) for n in dict.fromkeys(found)}
    for name in sorted(curves):
        group, _, last = name.partition("/")
        title = last if group == "health" else group
        title = title.replace("_", " ").replace("rank me", "RankMe")
        panels.setdefault(title[:1].upper() + title[1:], {})[name] = curves[name]
    columns = min(2, len(panels))
    size = (4.4 * columns, 2.9 * math.ceil(len(panels) / columns))
    figure = Figure(size, DPI, layout=ConstrainedLayoutEngine(hspace=0.06))
    end = max(x[-1] for lines in panels.values() for x, _ in lines.values())
    for number, (title, lines) in enumerate(panels.items(), 1):
        axes = _axes(figure, math.ceil(len(panels) / columns), columns, number)
        pad = 22 if len(lines) > 1 else 6
        axes.set_title(title, loc="left", fontsize=11, weight="bold", pad=pad)
        axes.set_xlim(0, 1.02 * end or None)
        axes.set_xlabel(axis if number > len(panels) - columns else "")
        for (name, (x, value)), ink in zip(lines.items(), COLOURS * 9, strict=False):
            smooth = value if title == "Learning rate" else running_mean(value)
            if smooth is not value:
                axes.plot(x, value, color=ink, alpha=0.25, linewidth=0.8)
            label = name.removeprefix("loss_").replace("knn/", "k = ")
            label = label.removeprefix("retrieval/")
            marker = "o" if len(x) <= 30 else ""
            axes.plot(x, smooth, color=ink, marker=marker, markersize=3.5, label=label)
        if len(lines) > 1:
            # Under the title: within the panel it would lie on the curves.
            place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
            place |= {"borderpad": 0.3, "borderaxespad": 0, "handlelength": 1.2}
            axes.legend(frameon=False, fontsize=9, ncols=len(lines), **place)
        every = np.concatenate([value for _, value in lines.values()])
        if title == "Images per second":
            axes.set_ylim(bottom=0)
        if title.startswith(("kNN", "R@K")):
            axes.yaxis.set_major_formatter(_percent)
        wide = 0 < 20 * every.min() < every.max()
        if wide and title.startswith(("Loss", "Learning")):
            axes.set_yscale("log")
    write_png(figure, path)


def running_mean(value: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
    """Average each point with its neighbours, 1/25 of the curve; a short one as is."""
    half = len(value) // 50
    if half == 0:
        return value
    window = np.ones(2 * half + 1)
    count = np.convolve(np.ones(len(value)), window, "same")
    return np.convolve(value, window, "same") / count


def draw_coefficient_curves(
    rows: Sequence[dict[str, Any]],
    path: Path,
    *,
    x: str,
    y: str,
    group: str | None = None,
    baseline: float | None = None,
    xlabel: str = "",
    ylabel: str = "",
) -> None:
    """Draw a number over a coefficient, from a set of runs, as a PNG (Fig. 3 and 4).

    A point is the mean of the runs that share x, its bar their standard deviation;
    shares in [0, 1] are written as percentages.

    Args:
        rows: one a run, e.g. {"lambda_intra": 15, "seed": 0, "knn": 0.863}; rows
            without x or y (a run still under way) are left out.
        path: of the PNG; its folders are made.
        x: the coefficient's key.
        y: the number's key.
        group: key that tells lines apart, e.g. "kind": mixup or cutmix.
        baseline: y of the method without this term, drawn as a dashed line.
        xlabel: below the picture; the key when left out.
        ylabel: beside the picture; the key when left out.

    Raises:
        UserError: no row has both x and y.
    """
    lines = coefficient_means(rows, x=x, y=y, group=group)
    figure = Figure((5.4, 3.9), DPI, layout="constrained")
    axes = _axes(figure, 1, 1, 1)
    axes.set(xlabel=xlabel or x, ylabel=ylabel or y)
    style: dict[str, Any] = {"capsize": 4, "markersize": 6}
    for i, (name, (at, mean, bar, _)) in enumerate(lines.items()):
        style |= {"color": COLOURS[i % len(COLOURS)], "marker": "os^D"[i % 4]}
        axes.errorbar(at, mean, np.where(bar > 0, bar, np.nan), label=name, **style)
    if baseline is not None:
        axes.axhline(baseline, color="#222222", linestyle="--", label="baseline")
    counts = np.concatenate([runs for *_, runs in lines.values()])
    least, most = counts.min(), counts.max()
    if most > 1:
        words = f"{most}" if least == most else f"{least} to {most}"
        words = f"mean and standard deviation of {words} runs"
        axes.set_title(words, loc="left", fontsize=10)
    ticks = np.unique(np.concatenate([at for at, *_ in lines.values()]))
    positive = ticks[ticks > 0]
    if ticks[0] >= 0 and len(positive) and 30 * positive[0] <= ticks[-1]:
        # Where 0 is among them it lies a step below the least of the others.
        if ticks[0]:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
            axes.set_xlim(-0.3 * positive[0], 1.5 * ticks[-1])
        axes.minorticks_off()
    if len(ticks) <= 10:
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    if all(mean.min() >= 0 and mean.max() <= 1 for _, mean, *_ in lines.values()):
        axes.yaxis.set_major_formatter(_percent)
    if any(axes.get_legend_handles_labels()[1]):
        axes.legend(frameon=False)
    write_png(figure, path)


def coefficient_means(
    rows: Sequence[dict[str, Any]], *, x: str, y: str, group: str | None = None
) -> dict[str, tuple[np.ndarray, ...]]:
    """Gather runs into {group: (x, mean of y, its deviation, runs)}, x increasing.

    The deviation is the sample's (n - 1), 0 of a single run. Without `group` the one
    line's name is "".

    Raises:
        UserError: no row has both x and y.
    """
    values: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if _is_number(row.get(x)) and _is_number(row.get(y)):
            line = values.setdefault(str(row.get(group, "")) if group else "", {})
            line.setdefault(float(row[x]), []).append(float(row[y]))
    if not values:
        raise UserError(
            f"none of the {len(rows)} runs has a number for both '{x}' and '{y}'"
        )
    lines = {}
    for name, line in values.items():
        runs = [line[at] for at in sorted(line)]
        deviation = [np.std(r, ddof=1) if len(r) > 1 else 0.0 for r in runs]
        mean, counts = [np.mean(r) for r in runs], [len(r) for r in runs]
        lines[name] = tuple(map(np.array, (sorted(line), mean, deviation, counts)))
    return lines


def _axes(figure, rows, columns, number):
    axes = figure.add_subplot(rows, columns, number)
    axes.grid(color="#e3e3e3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color="#999999", labelsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return axes


def _percent(share, _position=None):
    return f"{100 * share:.4g} %"


def _is_number(value):
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _numbers(line):
    """Return the finite numbers of a JSON object, nested ones as "a/b"; else none."""
    try:
        todo = {"": json.loads(line)}
    except ValueError:
        return {}
    found = {}
    while todo:
        name, value = todo.popitem()
        if isinstance(value, dict):
            todo |= {f"{name}/{key}".lstrip("/"): part for key, part in value.items()}
        elif _is_number(value) and name:
            found[name] = float(value)
    return found
