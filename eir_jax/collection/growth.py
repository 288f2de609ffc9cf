"""A folder that has grown: what a file of embeddings holds of it already."""

import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from eir_jax.collection.embeddings import Embeddings, read_embeddings
from eir_jax.system.errors import UserError

# Of `meta`: where these are the same a picture's row would be the same.
MADE_BY = ("checkpoint", "model", "image_size", "transform", "preparation", "source")


def known_rows(
    file: Path, meta: dict[str, Any], folder: Path, paths: Sequence[str]
) -> tuple[Embeddings | None, str]:
    """Return the rows of a file that need not be made anew, and what to say of it.

    A row stands for a path whose file still has the content (SHA-256) that was
    embedded. None where the file is not there, or nothing of it can be kept.

    Args:
      file: an .npz that `eir_jax.embed` may have written.
      meta: of the embeddings that are asked for.
      folder: of the pictures.
      paths: of those that are there now, relative to it.
    """
    if file.suffix.lower() != ".npz" or not file.exists():
        return None, ""
    try:
        found = read_embeddings(file)
    except UserError:
        return None, f"{file} holds no embeddings to go on from: it is replaced"
    differs = [key for key in MADE_BY if found.meta.get(key) != _plain(meta[key])]
    if found.path is None or found.hash is None or differs:
        why = f"another {differs[0]}" if differs else "no paths or hashes"
        return None, f"{file} has {why}: all pictures are embedded anew"
    row_of = {str(path): row for row, path in enumerate(found.path)}
    there = [path for path in paths if path in row_of]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda path: _digest(folder / path), there))
    rows = [
        row_of[path]
        for path, digest in zip(there, hashes, strict=True)
        if digest == bytes(found.hash[row_of[path]])
    ]
    gone, changed = len(row_of) - len(there), len(there) - len(rows)
    words = f"{file}: {len(rows):,} embedded before, {len(paths) - len(rows):,} to do"
    words += f", {changed:,} of them changed" if changed else ""
    words += f"; {gone:,} no longer there" if gone else ""
    found = dataclasses.replace(found, label=None)  # of a split's: a folder has none
    return take(found, np.array(rows, np.int64)) if rows else None, words


def take(found: Embeddings, rows: np.ndarray) -> Embeddings:
    """Return some rows, in the order that is given."""
    columns: dict[str, Any] = {
        name: np.asarray(column[rows])
        for name, column in vars(found).items()
        if isinstance(column, np.ndarray)
    }
    return dataclasses.replace(found, **columns)


def together(
    before: Embeddings, new: Embeddings | None, meta: dict[str, Any]
) -> Embeddings:
    """Return the rows of both, sorted by their paths as a whole folder is."""
    if new is not None:
        columns: dict[str, Any] = {
            name: np.concatenate([column, getattr(new, name)])
            for name, column in vars(before).items()
            if isinstance(column, np.ndarray) and getattr(new, name) is not None
        }
        before = dataclasses.replace(before, **columns)
    assert before.path is not None
    order = np.array(sorted(range(len(before.path)), key=before.path.__getitem__))
    return dataclasses.replace(take(before, order), meta=meta)


def _plain(value: Any) -> Any:
    """Return a setting as JSON gives it back: lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(x) for x in value] if isinstance(value, list | tuple) else value


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest().encode()
    except OSError:
        return b""
