"""A collection as other programs read it: CSV, Parquet, TensorBoard's projector, FAISS.

The suffix of a file says the form. All hold the rows in one order.
"""

import csv
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eir_jax.collection.embeddings import (
    Embeddings,
    names_of,
    one_field,
    opened_npz,
)
from eir_jax.collection.pictures import thumbnails
from eir_jax.system import processes
from eir_jax.system.errors import UserError
from eir_jax.system.files import check_suffix, check_writable, replacing, to_json

SPRITE, MOST_SPRITE = 8192, 10_000
"""TensorBoard's: pixels a side; pictures, for a browser."""


def check_form(file: Path) -> None:
    """Refuse a name that says no form, or one whose package is not installed.

    Raises:
      UserError: naming the suffixes, or the package.
    """
    check_suffix(file, tuple(FORMS), "embeddings")
    if file.suffix == ".tsv" and file.name != "vectors.tsv":
        raise UserError(
            f"{file}: TensorBoard's projector reads vectors.tsv, metadata.tsv and "
            f"sprite.png of a folder; give --out={file.with_suffix('')}/vectors.tsv"
        )
    package, name = FORMS[file.suffix.lower()].needs
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"{file}: {file.suffix} needs {name}: pip install {name}")


@contextmanager
def written_whole(file: Path) -> Iterator[Callable[[Embeddings], None]]:
    """Give a function that writes embeddings to a file, whole or not at all.

    Of several processes the first one writes.

    Raises:
      UserError: it cannot be written, or holds other arrays; at once, before there is
        anything to write.
    """
    if not processes.is_main():
        yield lambda found: None
        return
    check_writable(file)
    _check_no_others(file)

    def write(found: Embeddings) -> None:
        try:
            with replacing(file) as part:
                FORMS[file.suffix.lower()].write(found, part, file)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error}") from None

    yield write


def _check_no_others(file: Path) -> None:
    """Refuse to replace an .npz of other arrays, such as images."""
    if file.suffix.lower() != ".npz" or not file.is_file():
        return
    try:
        with opened_npz(file) as arrays:
            names = arrays.files
    except UserError:
        return  # what a write that failed has left, say
    if "embedding" not in names:
        raise UserError(
            f"{file} is there and holds {', '.join(names) or 'nothing'}, no "
            "embeddings; give another --out, as that would be lost"
        )


def columns_of(found: Embeddings) -> dict[str, list[Any]]:
    """Return what is known of each row, but its vectors: plain values for a table.

    `path` and `folder` (of pictures) or `index`; `label` and `class` (its name),
    `width` and `height` in pixels, and `hash`, where known.
    """
    columns: dict[str, list[Any]] = {}
    if found.path is not None:
        columns["path"] = names_of(found)
        columns["folder"] = [name.rpartition("/")[0] for name in columns["path"]]
    elif found.index is not None:
        columns["index"] = found.index.tolist()
    if found.label is not None:
        columns["label"] = labels = found.label.tolist()
        if names := found.meta.get("class_names"):
            known = [0 <= x < len(names) for x in labels]
            columns["class"] = [
                str(names[x]) if k else "" for x, k in zip(labels, known, strict=True)
            ]
    if found.size is not None:
        columns["width"], columns["height"] = found.size.T.tolist()
    if found.hash is not None:
        columns["hash"] = [x.decode() for x in found.hash.tolist()]
    return columns


def _write_npz(found: Embeddings, part: Path, file: Path) -> None:
    arrays = vars(found) | {"meta": to_json(found.meta)}
    if found.path is not None:
        arrays["folder"] = np.array(columns_of(found)["folder"])
    with part.open("wb") as stream:
        np.savez(stream, **{k: v for k, v in arrays.items() if v is not None})


def _write_csv(found: Embeddings, part: Path, file: Path) -> None:
    columns = columns_of(found)
    names = [*columns, *(f"e{i}" for i in range(found.embedding.shape[1]))]
    with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        writer = csv.writer(out)
        writer.writerow(names)
        for row, vector in enumerate(found.embedding):
            known = [column[row] for column in columns.values()]
            writer.writerow([*known, *(f"{value:.7g}" for value in vector)])


def _write_parquet(found: Embeddings, part: Path, file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {}
    for name, values in columns_of(found).items():
        if values and isinstance(values[0], str):  # names that are no UTF-8, spelt out
            values = [x.encode("utf-8", "backslashreplace").decode() for x in values]
        columns[name] = values
    for name in ("embedding", "feature"):
        if (rows := getattr(found, name)) is not None:
            flat = pyarrow.array(np.asarray(rows, np.float32).ravel())
            columns[name] = pyarrow.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    table = pyarrow.table(columns)
    parquet.write_table(
        table.replace_schema_metadata({"eir_jax": to_json(found.meta)}), part
    )


def _write_faiss(found: Embeddings, part: Path, file: Path) -> None:
    import faiss

    index = faiss.IndexFlatIP(found.embedding.shape[1])
    index.add(np.ascontiguousarray(found.embedding, np.float32))
    part.write_bytes(faiss.serialize_index(index).data)  # its writer hides a full disk


def _write_projector(found: Embeddings, part: Path, file: Path) -> None:
    """Write vectors.tsv, and beside it metadata.tsv, sprite.png and their config."""
    folder = file.parent
    np.savetxt(part, found.embedding, fmt="%.6g", delimiter="\t")
    columns = columns_of(found)
    with (
        replacing(folder / "metadata.tsv") as beside,
        beside.open("w", encoding="utf-8", errors="backslashreplace") as out,
    ):
        if len(columns) > 1:  # of a single column it wants no header
            print(*columns, sep="\t", file=out)
        for row in zip(*columns.values(), strict=True):
            print(*(one_field(str(value)) for value in row), sep="\t", file=out)
    lines = ['tensor_path: "vectors.tsv"', 'metadata_path: "metadata.tsv"']
    if side := _write_sprite(found, folder / "sprite.png"):
        lines.append('sprite { image_path: "sprite.png"')
        lines.append(f"  single_image_dim: {side} single_image_dim: {side} }}")
    text = "\n  ".join(["embeddings {", 'tensor_name: "embedding"', *lines]) + "\n}\n"
    with replacing(folder / "projector_config.pbtxt") as beside:
        beside.write_text(text)


def _write_sprite(found: Embeddings, file: Path) -> int:
    """Write the pictures in a square of rows; return a picture's side, 0: none."""
    from PIL import Image

    across = int(np.ceil(len(found.embedding) ** 0.5))
    side = min(64, SPRITE // across)
    if side < 8:
        return 0
    try:
        pictures = list(thumbnails(found, side))
    except UserError:  # a split of a run: there are no files
        return 0
    if all(picture is None for picture in pictures):
        return 0
    sheet = Image.new(
        "RGB", (across * side, -(-len(pictures) // across) * side), "white"
    )
    for place, picture in enumerate(pictures):
        if picture is not None:
            height, width = picture.shape[:2]
            left = place % across * side + (side - width) // 2
            top = place // across * side + (side - height) // 2
            sheet.paste(Image.fromarray(picture), (left, top))
    with replacing(file) as part:
        sheet.save(part, format="PNG")
    return side


class Form(NamedTuple):
    """A kind of file: what writes it, and the package (module, name) that it needs."""

    write: Callable[[Embeddings, Path, Path], None]
    needs: tuple[str, str] = ("", "")


FORMS = {
    ".npz": Form(_write_npz),
    ".csv": Form(_write_csv),
    ".parquet": Form(_write_parquet, ("pyarrow", "pyarrow")),
    ".faiss": Form(_write_faiss, ("faiss", "faiss-cpu")),
    ".tsv": Form(_write_projector),
}
