"""Figures of embeddings, drawn without a display and without pyplot's global state."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from eir_jax.data.encoded import EncodedImages
from eir_jax.evaluation.knn import unit_rows
from eir_jax.evaluation.nearest import nearest
from eir_jax.figures.png import write_png
from eir_jax.system.errors import UserError

SAME, OTHER, UNKNOWN, QUERY = "#2e9e4f", "#f0569b", "#b5b5b5", "#222222"
DPI = 100


def draw_neighbours(
    images: UInt8[np.ndarray, "row height width 3"] | EncodedImages,
    embeddings: Mapping[str, Float[np.ndarray, "row dim"]],
    label: Int[np.ndarray, " row"] | None,
    path: Path,
    *,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> None:
    """Draw a few images of a set, each beside its 8 nearest of the rest (Fig. 6).

    Each query has a row for each of `embeddings`, named where there are several.

    Raises:
        UserError: an embedding is not finite or zero, or there are fewer than 2 rows.
    """
    query = choose_queries(len(images), label, seed=seed)
    found = []
    for embedding in embeddings.values():
        rows = unit_rows(embedding, "the set")
        k = min(8, len(rows) - 1)
        found.append(nearest(rows[query], rows, k, exclude=query, mesh=mesh))
    # Query by query, the embeddings' rows below each other.
    cosine, index = (
        np.stack(x, axis=1).reshape(-1, k) for x in zip(*found, strict=True)
    )
    neighbour_grid(
        images,
        index,
        np.repeat(query, len(embeddings)),
        label,
        path,
        cosine,
        row_names=list(embeddings) * len(query) if len(embeddings) > 1 else None,
        class_names=class_names,
        title=title,
    )


def choose_queries(
    num_examples: int,
    label: Int[np.ndarray, " row"] | None = None,
    *,
    count: int = 4,
    seed: int = 0,
) -> Int[np.ndarray, " query"]:
    """Choose rows at random by the seed, of different classes as far as there are any.

    Returns:
        At most `count` different rows, in the order of their classes.
    """
    order = np.random.default_rng(seed).permutation(num_examples)
    if label is None:
        return order[:count]
    label = np.asarray(label)
    _, first = np.unique(label[order], return_index=True)
    repeats = np.ones(num_examples, bool)
    repeats[first] = False
    chosen = order[np.argsort(repeats, kind="stable")][:count]
    return chosen[np.argsort(label[chosen], kind="stable")]


def neighbour_grid(
    images: UInt8[np.ndarray, "row height width 3"] | EncodedImages,
    neighbours: Int[np.ndarray, "query k"],
    query_index: Int[np.ndarray, " query"],
    label: Int[np.ndarray, " row"] | None,
    path: Path,
    cosine: Float[np.ndarray, "query k"] | None = None,
    *,
    row_names: Sequence[str] | None = None,
    image_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Draw each query at the left of its neighbours, and write a PNG at once.

    Neighbours of the query's class have a green frame, others a pink one with their
    class below. Small images are enlarged by a whole factor, pixel by pixel.

    Args:
        images: the set, 0 .. 255.
        neighbours: rows of the set, the nearest first; negative: none, left empty.
        query_index: rows of the set.
        label: classes; negative, or no labels at all: unknown, a grey frame.
        path: of the PNG; its folders are made.
        cosine: of each neighbour, written below it.
        row_names: of each query's row, written below it; the names of two runs, say.
        image_names: of each row of the set, the files' own; below each neighbour.
        class_names: by class; the class's number when left out.
        title: above the figure.

    Raises:
        UserError: the images are not uint8 [row, height, width, 3].
    """
    if not isinstance(images, EncodedImages):  # of these, only those drawn are decoded
        images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"images must be uint8 [row, height, width, 3], not {images.dtype} "
            f"{list(images.shape)}"
        )
    label = np.full(len(images), -1) if label is None else np.asarray(label)
    queries, columns = np.shape(neighbours)
    page = _Page(images.shape[1:3], queries, columns, title is not None)
    page.head(title, cosine is not None, (label[query_index] >= 0).any())

    def name_of(row):
        names = () if class_names is None else class_names
        return str(names[label[row]] if label[row] < len(names) else label[row])

    for i, row in enumerate(query_index):
        known = label[row] >= 0
        lines = page.wrapped(name_of(row), 2) if known else []
        below = [(line, QUERY, "bold") for line in lines]
        if row_names is not None:
            (line,) = page.wrapped(row_names[i], 1)
            below = [*below[:1], (line, QUERY, "normal")]
        page.image(i, 0, images[row], QUERY, below)
        for j, other in enumerate(neighbours[i]):
            if other < 0:
                continue
            below = [] if cosine is None else [(f"{cosine[i][j]:.2f}", QUERY, "normal")]
            colour = UNKNOWN
            if known and label[other] >= 0:
                colour = SAME if label[other] == label[row] else OTHER
            if image_names is not None:
                (line,) = page.wrapped(image_names[other], 1)
                below.append((line, colour if colour == OTHER else QUERY, "normal"))
            elif colour == OTHER:
                (line,) = page.wrapped(name_of(other), 1)
                below.append((line, OTHER, "normal"))
            page.image(i, j + 1, images[other], colour, below)
    write_png(page.figure, Path(path))


class _Page:
    """A grid of images laid out in whole pixels, so that their pixels stay square."""

    def __init__(self, size: tuple[int, int], rows: int, columns: int, title: bool):
        self.columns = columns
        self.scale = max(1, round(160 / max(size)))
        self.cell = min(self.scale * max(size), 224)
        self.frame = max(3, self.cell // 36)
        self.font = self.cell / 11  # pixels
        self.gap = 4 * self.frame
        self.below = round(2.9 * self.font)
        self.margin = 6 * self.frame
        self.top = self.margin + round(self.font * (4.6 if title else 2.2))
        # The query stands apart.
        self.apart = round(self.cell / 4)
        width = 2 * self.margin + (columns + 1) * (self.cell + self.gap) + self.apart
        height = self.top + rows * (self.cell + self.below + self.gap) + self.gap
        self.size = (width - self.gap, height)
        inches = (self.size[0] / DPI, self.size[1] / DPI)
        self.figure = Figure(inches, DPI, facecolor="white")

    def text(self, x, y, words, scale=1.0, **style):
        """Write words at a pixel counted from the left and the top."""
        self.figure.text(
            x / self.size[0],
            1 - y / self.size[1],
            words,
            fontsize=scale * self.font * 72 / DPI,
            va="top",
            parse_math=False,
            **style,
        )

    def head(self, title, with_cosine, with_classes):
        """Write the title, what the columns are and what the frames' colours mean."""
        if title is not None:
            self.text(self.margin, self.margin, title, 1.4, weight="bold", color=QUERY)
        y = self.top - 2.0 * self.font
        first = self.margin + self.cell + self.gap + self.apart
        words = "its nearest" + (", with their cosine" if with_cosine else "")
        self.text(self.margin, y, "query", color=QUERY)
        if self.columns > 3 or not with_classes:  # else there is no room for both
            self.text(first, y, words, color=QUERY)
        if not with_classes:
            return
        names = {"same class as the query": SAME, "other class": OTHER}
        self.figure.legend(
            handles=[
                Patch(fill=False, edgecolor=c, linewidth=2.5, label=name)
                for name, c in names.items()
            ],
            loc="upper right",
            bbox_to_anchor=(1 - self.margin / self.size[0], 1 - y / self.size[1]),
            ncols=2,
            frameon=False,
            fontsize=self.font * 72 / DPI,
            borderaxespad=0,
            borderpad=0,
        )

    def image(self, row, column, image, colour, below):
        """Draw an image in its frame, with lines of (words, colour, weight) below."""
        x = self.margin + column * (self.cell + self.gap) + (column > 0) * self.apart
        y = self.top + row * (self.cell + self.below + self.gap)
        width, height = self.size
        axes = self.figure.add_axes(
            (
                x / width,
                1 - (y + self.cell) / height,
                self.cell / width,
                self.cell / height,
            )
        )
        axes.imshow(image, interpolation="nearest" if self.scale > 1 else "antialiased")
        axes.axis("off")
        # Behind the image, of which it shows its outer half.
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, zorder=-1)
        frame.set(edgecolor=colour, linewidth=2 * self.frame * 72 / DPI, clip_on=False)
        axes.add_patch(frame)
        y += self.cell + self.frame + 0.25 * self.font
        for words, ink, weight in below:
            self.text(
                x + self.cell / 2,
                y,
                words,
                ha="center",
                color=ink,
                weight=weight,
            )
            y += 1.2 * self.font

    def wrapped(self, name, lines):
        """Break a class's name into at most so many lines of a cell's width."""
        most = round(self.cell / self.font / 0.62)
        if lines == 1:  # the end of a file's name tells more than its middle
            half = (most - 1) // 2
            return [name if len(name) <= most else f"{name[:half]}…{name[-half:]}"]
        return textwrap.wrap(name, most, max_lines=lines, placeholder="…") or [""]
