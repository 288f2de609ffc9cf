"""The file of a collection: embeddings, and what each row is of."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from eir_jax.system import processes
from eir_jax.system.errors import UserError
from eir_jax.system.files import check_writable, in_words, replacing, to_json


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
    """Read what this command wrote, or any .npz with `embedding`; not the feature.

    Raises:
      UserError: it is missing or no .npz, or its arrays are not as they should be.
    """
    with opened_npz(file) as arrays:
        if "embedding" not in arrays.files:
            raise UserError(
                f"{file} holds no 'embedding' (it holds: "
                f"{', '.join(arrays.files) or 'nothing'}); make it by eir_jax.embed"
            )
        found: dict[str, Any] = {
            key: arrays[key] if key in arrays.files else None
            for key in ("embedding", "path", "index", "label", "meta")
        }
    embedding = found.pop("embedding")
    path, index, label, meta_text = found.values()
    if embedding.ndim != 2 or not np.issubdtype(embedding.dtype, np.floating):
        raise UserError(
            f"'embedding' of {file} is {embedding.dtype} {list(embedding.shape)}; it "
            "must be float32 [n, dim]"
        )
    for column, key, kind in (
        (path, "path", np.str_),
        (index, "index", np.integer),
        (label, "label", np.integer),
    ):
        if column is not None:
            _check_column(column, key, kind, len(embedding), file)
    try:
        meta = {} if meta_text is None else json.loads(str(meta_text))
        meta = meta if isinstance(meta, dict) else {}
    except ValueError:
        meta = {}
    if path is None and index is None:
        index = np.arange(len(embedding))
    meta.setdefault("source", str(file.resolve()))
    return Embeddings(embedding, None, path, index, label, meta)


@contextmanager
def opened_npz(file: Path) -> Iterator[Any]:
    """Open an .npz of plain arrays.

    Raises:
      UserError: it is missing, or something else; also of an array read later.
    """
    try:
        with file.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            if not hasattr(arrays, "files"):
                raise ValueError("a single array")
            yield arrays
    except FileNotFoundError:
        raise UserError(f"there is no file {in_words(file)}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} cannot be read as an .npz of plain arrays ({error})"
        ) from None


@contextmanager
def written_whole(file: Path) -> Iterator[Callable[[Embeddings], None]]:
    """Give a function that writes embeddings to a file, whole or not at all.

    Of several processes the first one writes.

    Raises:
      UserError: it cannot be written; at once, before there is anything to write.
    """
    if not processes.is_main():
        yield lambda found: None
        return
    check_writable(file)

    def write(found: Embeddings) -> None:
        arrays = vars(found) | {"meta": to_json(found.meta)}
        try:
            with replacing(file) as part, part.open("wb") as stream:
                np.savez(stream, **{k: v for k, v in arrays.items() if v is not None})
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error}") from None

    yield write


def _check_column(column, key, kind, rows, file) -> None:
    if column.shape != (rows,) or not np.issubdtype(column.dtype, kind):
        words = "strings" if kind is np.str_ else "whole numbers"
        raise UserError(
            f"'{key}' of {file} is {column.dtype} {list(column.shape)}; it must hold "
            f"{rows} {words}"
        )


def names_of(embeddings: Embeddings) -> list[str]:
    """Return each row's path or index."""
    column = embeddings.index if embeddings.path is None else embeddings.path
    assert column is not None
    return [str(name) for name in column]


def one_field(name: str) -> str:
    """Keep a file name within its column and line."""
    return name.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
