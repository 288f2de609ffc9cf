"""The file of a collection: embeddings, and what each row is of."""

import dataclasses
import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from eir_jax.system.errors import UserError, first_line
from eir_jax.system.files import in_words

LEAST_MAPPED = 1 << 26  # bytes
GREY_SIDE = 16


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What an .npz of embeddings holds; each row has a path or an index."""

    embedding: Float[np.ndarray, "row dim"]
    feature: Float[np.ndarray, "row feature"] | None
    path: np.ndarray | None
    """Strings, relative to the folder `meta['source']`."""
    index: Int[np.ndarray, " row"] | None
    """Rows of the .npz file or the split that `meta['source']` names."""
    label: Int[np.ndarray, " row"] | None
    meta: dict[str, Any]
    size: Int[np.ndarray, "row 2"] | None = None
    """Width and height of the picture's file, in pixels."""
    hash: np.ndarray | None = None
    """SHA-256, 64 ASCII letters: of the file, or of the pixels where there is none."""
    grey: UInt8[np.ndarray, "row side side"] | None = None
    """What the encoder sees, grey and at 16x16: tells copies from what is alike."""


COLUMNS: tuple[tuple[str, type, tuple[int, ...]], ...] = (
    ("path", np.str_, ()),
    ("index", np.integer, ()),
    ("label", np.integer, ()),
    ("size", np.integer, (2,)),
    ("hash", np.bytes_, ()),
    ("grey", np.uint8, (GREY_SIDE, GREY_SIDE)),
)
"""What a row may have beside its vectors: its name here, type and shape."""


def read_images(
    file: Path, split: str | None = None
) -> tuple[UInt8[np.ndarray, "row height width 3"], Int[np.ndarray, " row"] | None]:
    """Read 'images' and 'labels' of an .npz, or those of one of its splits.

    Raises:
      UserError: there are none, it is not clear which, or they are not uint8 RGB.
    """
    with opened_npz(file) as arrays:
        names = [f"{split}_images"] if split else ["images"]
        if not split and "images" not in arrays.files:
            names = [n for n in ("train_images", "test_images") if n in arrays.files]
        if len(names) > 1:
            raise UserError(f"{file} has a train and a test split; give --split")
        if not names or names[0] not in arrays.files:
            raise UserError(
                f"{file} holds no '{names[0] if names else 'images'}' "
                f"(it holds: {', '.join(arrays.files) or 'nothing'})"
            )
        images = arrays[names[0]]
        key = names[0].replace("images", "labels")
        labels = arrays[key] if key in arrays.files else None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"'{names[0]}' of {file} is {images.dtype} {list(images.shape)}; it must "
            "be uint8 [n, height, width, 3]"
        )
    if not images.size:
        raise UserError(f"'{names[0]}' of {file} holds no image")
    if labels is not None:
        _check_column(labels, key, np.integer, len(images), file)
    return images, labels


def read_embeddings(file: Path) -> Embeddings:
    """Read what eir_jax.embed wrote, or any .npz with `embedding`.

    Large arrays are not read but mapped: what is used of them is read then.

    Raises:
      UserError: it is missing or no .npz, or its arrays are not as they should be.
    """
    keys = [field.name for field in dataclasses.fields(Embeddings)]
    with opened_npz(file) as arrays:
        if "embedding" not in arrays.files:
            raise UserError(
                f"{file} holds no 'embedding' (it holds: "
                f"{', '.join(arrays.files) or 'nothing'}); make it by eir_jax.embed"
            )
        found: dict[str, Any] = dict.fromkeys(keys)
        for key in keys:
            if key in arrays.files:
                mapped = _mapped(file, arrays.zip.getinfo(f"{key}.npy"))
                found[key] = arrays[key] if mapped is None else mapped
    rows = len(found["embedding"]) if found["embedding"].ndim else 0
    if not found["embedding"].size:
        raise UserError(f"'embedding' of {file} is empty; make it by eir_jax.embed")
    for key, dim in (("embedding", "dim"), ("feature", "feature")):
        array = found[key]
        if array is None or (
            array.ndim == 2
            and len(array) == rows
            and np.issubdtype(array.dtype, np.floating)
        ):
            continue
        raise UserError(
            f"'{key}' of {file} is {array.dtype} {list(array.shape)}; it must be "
            f"float32 [{'n' if key == 'embedding' else rows}, {dim}]"
        )
    for key, kind, shape in COLUMNS:
        if found[key] is not None:
            _check_column(found[key], key, kind, rows, file, shape)
    meta_text = found["meta"]
    try:
        meta = {} if meta_text is None else json.loads(str(meta_text))
        meta = meta if isinstance(meta, dict) else {}
    except ValueError:
        meta = {}
    if found["path"] is None and found["index"] is None:
        found["index"] = np.arange(rows)
    if not isinstance(meta.get("source"), str):
        meta["source"] = str(file.resolve())
    return Embeddings(**found | {"meta": meta})


def _mapped(file: Path, member: zipfile.ZipInfo) -> np.ndarray | None:
    """Map a large array of an .npz that is not compressed; None: it is to be read.

    Raises:
      ValueError: it is no plain array, or the file is cut short.
    """
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < LEAST_MAPPED:
        return None
    with file.open("rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(30)  # of the zip, before the member's name and notes
        name, notes = struct.unpack("<HH", header[26:30])
        stream.seek(name + notes, 1)
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            return None
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran, dtype = read(stream)
        if fortran or dtype.hasobject:
            return None
        return np.memmap(file, dtype, "r", stream.tell(), shape)


@contextmanager
def opened_npz(file: Path) -> Iterator[Any]:
    """Open an .npz of plain arrays.

    Raises:
      UserError: it is missing, or something else; also of an array read later.
    """
    try:
        with file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is none, or not a whole one")
            stream.seek(0)
            arrays = np.load(stream, allow_pickle=False)
            yield arrays
    except FileNotFoundError:
        raise UserError(f"there is no file {in_words(file)}") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a damaged file raises some ten types
        raise UserError(
            f"{file} cannot be read as an .npz of plain arrays ({first_line(error)})"
        ) from None


def _check_column(column, key, kind, rows, file, shape=()) -> None:
    if column.shape != (rows, *shape) or not np.issubdtype(column.dtype, kind):
        words = {np.str_: "strings", np.integer: "whole numbers"}.get(kind, str(kind))
        each = " x ".join(map(str, (rows, *shape)))
        raise UserError(
            f"'{key}' of {file} is {column.dtype} {list(column.shape)}; it must hold "
            f"{each} {words}"
        )


def rows_on(embeddings: Embeddings, on: str) -> Float[np.ndarray, "row dim"]:
    """Return the 'embedding' or the 'feature'.

    Raises:
      UserError: there is no feature.
    """
    found: np.ndarray | None = getattr(embeddings, on)
    if found is None:
        raise UserError(f"the embeddings come without '{on}'; leave out --on={on}")
    return found


def names_of(embeddings: Embeddings) -> list[str]:
    """Return each row's path or index."""
    column = embeddings.index if embeddings.path is None else embeddings.path
    assert column is not None
    return [str(name) for name in column]


def one_field(name: str) -> str:
    """Keep a file name within its column and line."""
    return name.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
