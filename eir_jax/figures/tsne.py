"""Fig. 5: an embedding on a plane, by t-SNE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.colors import to_rgba, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eir_jax.evaluation.knn import unit_rows
from eir_jax.figures.curves import COLOURS, DPI
from eir_jax.figures.png import write_png
from eir_jax.system.errors import UserError

MARKERS = "o^"  # the second ten classes have the colours again, and triangles


UNKNOWN = "#c4c4c4"
LEAST_POINTS = 3


def draw_tsne(
    embedding: Float[np.ndarray, "row dim"],
    label: Int[np.ndarray, " row"] | None,
    path: Path,
    *,
    class_names: Sequence[str] | None = None,
    max_points: int = 3000,
    seed: int = 0,
    perplexity: float = 30,
) -> None:
    """Draw embeddings in the plane by t-SNE, coloured by class, as a PNG (Fig. 5).

    More than `max_points` rows are sampled by the seed. Negative labels, or none at
    all, are unknown: grey. Up to 20 classes have a legend.

    Raises:
        UserError: an embedding is not finite or zero, or there are fewer than 3 rows.
    """
    # In random order, so that no class lies on top of the others.
    rows = np.random.default_rng(seed).permutation(len(embedding))[:max_points]
    x, y = tsne_coordinates(embedding[rows], seed=seed, perplexity=perplexity).T
    label = np.full(len(rows), -1) if label is None else np.asarray(label)[rows]
    known = label >= 0
    classes, rank = np.unique(label[known], return_inverse=True)
    legend = 0 < len(classes) <= len(COLOURS) * len(MARKERS)
    wheel = matplotlib.colormaps["hsv"](np.arange(len(classes)) / max(len(classes), 1))
    inks = np.resize(to_rgba_array(COLOURS), (len(classes), 4)) if legend else wheel
    colour = np.tile(to_rgba(UNKNOWN), (len(rows), 1))
    colour[known] = inks[rank]
    shape = np.zeros(len(rows), int)
    shape[known] = rank // len(COLOURS) * legend
    figure = Figure((7.9 if legend else 6, 6), DPI)
    axes = figure.add_axes((0.02, 0.06, 6 * 0.96 / figure.get_figwidth(), 0.92))
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#e3e3e3")
    style: dict[str, Any] = {"linewidths": 0, "alpha": 0.8}
    style["s"] = float(np.clip(9000 / len(rows), 5, 40))
    for i, marker in enumerate(MARKERS):
        # Unlabelled images (a stable order) lie below the others.
        at = np.argsort(known, kind="stable")
        at = at[shape[at] == i]
        axes.scatter(x[at], y[at], c=colour[at], marker=marker, **style)
    if legend:
        names = [_class_name(class_names, wanted) for wanted in classes]
        _legend_beside(axes, names, inks, not known.all())
    few = "" if len(rows) == len(embedding) else f" of {len(embedding):,}"
    more = "" if legend or not len(classes) else f", coloured by {len(classes)} classes"
    more += "" if known.all() else ", unlabelled ones grey"
    figure.text(0.02, 0.02, f"t-SNE of {len(rows):,}{few} images{more}", fontsize=10)
    write_png(figure, path)


def tsne_coordinates(
    embedding: Float[np.ndarray, "row dim"], *, seed: int = 0, perplexity: float = 30
) -> Float[np.ndarray, "row 2"]:
    """Place the rows in the plane by scikit-learn's t-SNE of their directions.

    Of unit vectors the squared Euclidean distance is 2 - 2 cosine: the same order.

    Raises:
        UserError: a row is not finite or zero, or there are fewer than 3.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rows = unit_rows(np.asarray(embedding, np.float32), "the embedding")
    if len(rows) < LEAST_POINTS or rows.shape[1] < 2:
        raise UserError(
            f"t-SNE needs {LEAST_POINTS} rows of 2 numbers, not {list(rows.shape)}"
        )
    spread = bool(np.ptp(rows, axis=0).max() > 1e-6)
    tsne = TSNE(
        init="pca" if spread else "random",
        perplexity=min(perplexity, (len(rows) - 1) / 3),
        random_state=seed,
    )
    # With threads the order of its sums, and so the picture, changes from run to run.
    with threadpool_limits(1, user_api="openmp"):
        return tsne.fit_transform(rows)


def _legend_beside(axes, names, inks, unlabelled):
    points = [
        Line2D([], [], color=ink, marker=MARKERS[i // len(COLOURS)], linestyle="")
        for i, ink in enumerate(inks)
    ]
    if unlabelled:
        points.append(Line2D([], [], color=UNKNOWN, marker="o", linestyle=""))
    legend = axes.legend(
        points,
        [*names, "unlabelled"][: len(points)],
        fontsize=11 if len(points) <= 12 else 9.5,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        handletextpad=0.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _class_name(class_names, wanted):
    known = class_names is not None and wanted < len(class_names)
    name = str(class_names[wanted] if known else wanted)
    return name if len(name) <= 18 else name[:17] + "…"
