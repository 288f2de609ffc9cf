"""A collection to look through: map, clusters, neighbours, duplicates, outliers.

All of it stands in one HTML page that needs no network: the pictures small in JPEG
sheets, the numbers as base64 of little-endian arrays.
"""

import base64
import dataclasses
import functools
import importlib.util
import io
import sys
import warnings
from contextlib import ExitStack, closing
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from eir_jax.collection.duplicates import Copy, copies_of, find_duplicates
from eir_jax.collection.embeddings import Embeddings, names_of, rows_on
from eir_jax.collection.formats import columns_of
from eir_jax.collection.growth import take
from eir_jax.collection.pictures import thumbnails
from eir_jax.system.errors import UserError, first_line, one_line
from eir_jax.system.files import replacing, to_json
from eir_jax.system.progress import ProgressLine
from eir_jax.system.words import counted

PAGE = Path(__file__).with_name("gallery.html")
LEAST_PICTURES = 3
CELL = 64
"""Pixels of a picture's longer side, at most."""
BLOCK = 8
"""Cells are multiples of JPEG's block, so that no picture colours the next one."""
SHEET = 2048
"""Pixels of a sheet's side, at most: what phones draw from."""
QUALITY = 80
OUTLIERS, KTH = 120, 10
"""How many outliers are listed, and the neighbour from which they are far."""
MAPS = ("tsne", "umap")
SECONDS_A_MAP = {"tsne": 60, "umap": 30}
"""Of 10,000 pictures, roughly, on one core."""


@dataclasses.dataclass(frozen=True)
class Sheets:
    """Small pictures in squares of `cell` pixels, `across * across` a sheet."""

    jpeg: list[bytes]
    cell: int
    across: int
    shape: UInt8[np.ndarray, "row 2"]
    """Width and height of each, from its cell's upper left corner; 0: there is none."""


@dataclasses.dataclass(frozen=True)
class Gallery:
    """What the page shows; `make_gallery` makes it."""

    names: list[str]
    group: list[str] | None
    """Class, label or folder of each picture, where there are several."""
    place: Float32[np.ndarray, "row 2"]
    """On the map, within 0 .. 1, both axes to one scale."""
    map: str
    """Of `MAPS`, what made it."""
    cluster: Int32[np.ndarray, " row"]
    """0 .. clusters - 1, the largest one first."""
    near_centre: Float32[np.ndarray, " row"]
    """Cosine with the centre of its cluster, -1 .. 1."""
    neighbour: Int32[np.ndarray, "row k"]
    """Rows, the most similar first, without itself."""
    cosine: Float32[np.ndarray, "row k"]
    duplicates: list[list[Copy]]
    random: str
    """How similar random pairs are, in words."""
    outliers: Int32[np.ndarray, " outlier"]
    """Rows, the farthest from their `kth` neighbour first."""
    kth: int
    sheets: Sheets


def make_gallery(
    found: Embeddings,
    *,
    on: str = "embedding",
    map_by: str = "tsne",
    clusters: int | None = None,
    k: int = 24,
    seed: int = 0,
) -> Gallery:
    """Work out what the page shows; say what takes long, and what is not there.

    Args:
      found: at least three rows, of unit length or not.
      on: 'embedding' or 'feature'.
      map_by: of `MAPS`: scikit-learn's t-SNE, or UMAP where umap-learn is installed.
      clusters: of k-means on the unit vectors, 1 .. rows; None: sqrt(rows / 10).
      k: neighbours a picture, at least 1 (and at most all others).
      seed: of the map and of k-means.

    Raises:
      UserError: there are fewer than three rows, or some that are zero or not finite;
        a number is out of range; umap-learn is not there; the rows are of an .npz, and
        that is not where it was.
    """
    from eir_jax.evaluation.knn import unit_rows
    from eir_jax.evaluation.nearest import nearest

    n = len(found.embedding)
    check_map(map_by)
    if n < LEAST_PICTURES:
        raise UserError(
            f"a page needs {LEAST_PICTURES} pictures, and there "
            f"{'is' if n == 1 else 'are'} {n}; embed more"
        )
    if clusters is not None and not 1 <= clusters <= n:
        raise UserError(f"--clusters={clusters} must be from 1 to {n}, the pictures")
    if k < 1:
        raise UserError(f"--k={k} must be at least 1")
    rows = unit_rows(np.asarray(rows_on(found, on), np.float32), "the embeddings")
    with ExitStack() as bars:

        def progress(what, total=1):
            return bars.enter_context(closing(ProgressLine(what, total))).update

        sheets = make_sheets(found, progress("reading pictures", n))
        k = min(k, n - 1)
        cosine, neighbour = nearest(
            rows, rows, k, exclude=np.arange(n), progress=progress("neighbours")
        )
        pairs = find_duplicates(found, on=on, progress=progress)
    clusters = clusters or max(1, round((n / 10) ** 0.5))
    label, near_centre = _clusters(rows, clusters, seed)
    return Gallery(
        names=names_of(found) if found.path is not None else _index_names(found),
        group=_group(found),
        place=_map(rows, map_by, seed),
        map=map_by,
        cluster=label,
        near_centre=near_centre,
        neighbour=neighbour.astype(np.int32),
        cosine=cosine,
        duplicates=copies_of(pairs, found, on),
        random=pairs.random.in_words(),
        outliers=np.argsort(cosine[:, min(KTH, k) - 1], kind="stable")[
            :OUTLIERS
        ].astype(np.int32),
        kth=min(KTH, k),
        sheets=sheets,
    )


def check_map(map_by: str) -> None:
    """Refuse UMAP where it is not installed.

    Raises:
      UserError: naming the package.
    """
    spec = importlib.util.find_spec("umap")
    # Without an origin it is a folder of that name, not the package.
    if map_by == "umap" and (spec is None or spec.origin is None):
        raise UserError("--map=umap needs umap-learn: pip install umap-learn")


def make_sheets(found: Embeddings, progress=None) -> Sheets:
    """Read all pictures anew, small; say in a line how many are not there.

    Raises:
      UserError: the rows are of an .npz that is not where it was.
    """
    small = list(thumbnails(found, CELL, progress))
    gone = sum(picture is None for picture in small)
    if gone:
        name = next(n for n, p in zip(names_of(found), small, strict=True) if p is None)
        print(
            f"{gone:,} of {counted(len(small), 'picture')} cannot be read, the first "
            f"is {one_line(str(Path(found.meta['source']) / name))}: drawn grey; give "
            "--images=DIR if they lie elsewhere now",
            file=sys.stderr,
        )
    largest = max((max(p.shape[:2]) for p in small if p is not None), default=BLOCK)
    cell = -(-largest // BLOCK) * BLOCK
    across = min(SHEET // cell, int(np.ceil(len(small) ** 0.5)))
    shape = np.zeros((len(small), 2), np.uint8)
    jpeg = []
    for start in range(0, len(small), across**2):
        part = small[start : start + across**2]
        height = -(-len(part) // across) * cell
        sheet = np.full((height, across * cell, 3), 128, np.uint8)
        for place, picture in enumerate(part):
            if picture is not None:
                high, wide = picture.shape[:2]
                top, left = place // across * cell, place % across * cell
                square = sheet[top : top + cell, left : left + cell]
                # The last pixels go on to the cell's end, so that none is stained.
                square[:] = np.pad(
                    picture, ((0, cell - high), (0, cell - wide), (0, 0)), mode="edge"
                )
                shape[start + place] = wide, high
        stream = io.BytesIO()
        Image.fromarray(sheet).save(
            stream, "JPEG", quality=QUALITY, subsampling=0, optimize=True
        )
        jpeg.append(stream.getvalue())
    return Sheets(jpeg, cell, across, shape)


def _index_names(found: Embeddings) -> list[str]:
    return [f"picture {name}" for name in names_of(found)]


def _group(found: Embeddings) -> list[str] | None:
    """Return each picture's class, label or folder, where there are several."""
    columns = columns_of(found)
    for name in ("class", "label", "folder"):
        values = [str(value) for value in columns.get(name, ())]
        if len(set(values)) > 1:
            return values
    return None


def _map(rows, map_by: str, seed: int) -> Float32[np.ndarray, "row 2"]:
    """Return places within 0 .. 1, both axes to one scale, by t-SNE or UMAP."""
    from eir_jax.figures.tsne import tsne_coordinates

    minutes = len(rows) / 10_000 * SECONDS_A_MAP[map_by] / 60
    if minutes > 1 / 10:
        about = f"{minutes:.0f} min" if minutes > 1 else f"{minutes * 60:.0f} s"
        name = {"tsne": "t-SNE", "umap": "UMAP"}[map_by]
        print(f"placing {len(rows):,} by {name}: {about} of a free core", flush=True)
    if map_by == "tsne":
        xy = tsne_coordinates(rows, seed=seed)
    else:
        import umap

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the seed, which leaves one thread
            xy = umap.UMAP(
                n_neighbors=min(15, len(rows) - 1),
                metric="cosine",
                init="spectral" if len(rows) > 16 else "random",
                random_state=seed,
            ).fit_transform(rows)
    low, span = xy.min(axis=0), np.ptp(xy, axis=0)
    return ((xy - low - span / 2) / max(span.max(), 1e-12) + 0.5).astype(np.float32)


def _clusters(rows, number: int, seed: int):
    """Return each row's cluster, the largest first, and its cosine with the centre.

    k-means of unit vectors, whose squared distance is 2 - 2 cosine.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1, user_api="openmp"):
        warnings.simplefilter("ignore")  # fewer distinct rows than clusters
        label = KMeans(number, n_init=2, random_state=seed).fit_predict(rows)
    found, label, size = np.unique(label, return_inverse=True, return_counts=True)
    rank = np.empty(len(found), np.int32)
    rank[np.argsort(-size, kind="stable")] = np.arange(len(found))
    label = rank[label]
    cosine = np.empty(len(rows), np.float32)
    for cluster in range(len(found)):
        members = np.flatnonzero(label == cluster)
        centre = rows[members].mean(axis=0)
        norm = max(float(np.linalg.norm(centre)), 1e-12)
        cosine[members] = rows[members] @ (centre / norm)
    return label, cosine


def page_of(gallery: Gallery, title: str) -> str:
    """Return the page as one text of ASCII, without a link to anything outside it."""
    ints = functools.partial(_base64, dtype="<i4")
    data = {
        "title": title,
        "names": gallery.names,
        "groups": None,
        "place": _base64(gallery.place, "<f4"),
        "map": {"tsne": "t-SNE", "umap": "UMAP"}[gallery.map],
        "cluster": ints(gallery.cluster),
        "nearCentre": _base64(gallery.near_centre, "<f2"),
        "k": gallery.neighbour.shape[1],
        "neighbour": ints(gallery.neighbour),
        "cosine": _base64(gallery.cosine, "<f2"),
        "duplicates": [
            [group[0].keep, [[c.row, round(c.cosine, 4), c.kind] for c in group]]
            for group in gallery.duplicates
        ],
        "random": gallery.random,
        "outliers": ints(gallery.outliers),
        "kth": gallery.kth,
        "cell": gallery.sheets.cell,
        "across": gallery.sheets.across,
        "shape": _base64(gallery.sheets.shape, "u1"),
    }
    if gallery.group is not None:
        names, which = np.unique(gallery.group, return_inverse=True)
        data["groups"] = {"names": names.tolist(), "of": ints(which)}
    images = "\n".join(
        f'<img class="sheet" alt="" src="data:image/jpeg;base64,{_text(jpeg)}">'
        for jpeg in gallery.sheets.jpeg
    )
    filled = {
        "title": escape(title).encode("ascii", "xmlcharrefreplace").decode(),
        "sheets": images,
        # In a script nothing ends it but its own tag.
        "data": to_json(data).replace("<", "\\u003c"),
    }
    first, *parts = PAGE.read_text(encoding="ascii").split("{{")
    ends = (part.split("}}", 1) for part in parts)
    return first + "".join(filled[name] + rest for name, rest in ends)


def write_page(gallery: Gallery, title: str, file: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with replacing(file) as part:
            part.write_text(page_of(gallery, title), encoding="ascii")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {first_line(error)}") from None


def _base64(array: np.ndarray, dtype: str) -> str:
    return _text(np.ascontiguousarray(array, dtype).tobytes())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def browse(
    found: Embeddings,
    out: Path,
    *,
    images: Path | None = None,
    most: int = 10_000,
    seed: int = 0,
    **options: Any,
) -> str:
    """Write the page of a collection; return a line that says what it holds.

    Args:
      found: the collection.
      out: the page.
      images: where the pictures lie now; None: where they were embedded.
      most: of more pictures so many are shown, drawn by the seed, in their order.
      seed: of that, of the map and of the clusters.
      options: of `make_gallery`.

    Raises:
      UserError: as `make_gallery` and `write_page`.
    """
    if most < LEAST_PICTURES:
        raise UserError(f"--most={most} must be at least {LEAST_PICTURES}")
    if images is not None:
        meta = found.meta | {"source": str(images.resolve())}
        found = dataclasses.replace(found, meta=meta)
    total = len(found.embedding)
    if total > most:
        print(
            f"of {total:,} pictures {most:,} are shown, drawn at random; --most=N "
            "shows more",
            flush=True,
        )
        found = take(
            found, np.sort(np.random.default_rng(seed).permutation(total)[:most])
        )
    gallery = make_gallery(found, seed=seed, **options)
    name = Path(found.meta["source"]).name
    write_page(gallery, one_line(name), out)
    copies = sum(len(group) for group in gallery.duplicates)
    clusters = int(gallery.cluster.max()) + 1
    return (
        f"{out}: {counted(len(gallery.names), 'picture')}, "
        f"{counted(clusters, 'cluster')}, {counted(copies, 'duplicate')}, "
        f"{out.stat().st_size / 1e6:.1f} MB"
    )
