"""Embed pictures, arrays or a split by a trained encoder."""

import dataclasses
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from eir_jax.collection.embeddings import GREY_SIDE, Embeddings, read_images
from eir_jax.collection.growth import known_rows, together
from eir_jax.data.encoded import EncodedImages
from eir_jax.data.picture_files import SUFFIXES, list_files, others_in_words
from eir_jax.data.pictures import (
    BrokenPicture,
    preparation,
    read_with_header,
)
from eir_jax.system.errors import UserError, one_line

if TYPE_CHECKING:
    from eir_jax.evaluation.restore import Run


MOST_NAMED = 20  # broken pictures; the others are counted


def existing_pictures(folder: Path) -> list[str]:
    """Return the pictures of a folder, as `list_files`; say what is not read.

    Raises:
      UserError: there are none.
    """
    paths, others = list_files(folder)
    for line in others_in_words(others):
        print(line, file=sys.stderr)
    if not paths:
        raise UserError(f"{folder} holds no pictures ({' '.join(SUFFIXES)})")
    return paths


class NoneReadable(UserError):
    """Of some pictures not one can be read."""


def embed_pictures(
    run: "Run", workdir: Path, folder: Path, paths: Sequence[str]
) -> Embeddings:
    """Embed picture files, a chunk in memory at a time.

    Broken ones are named on stderr and skipped.

    Args:
      run: the restored checkpoint.
      workdir: where it comes from, for the record.
      folder: that the paths are relative to.
      paths: at least one.

    Raises:
      NoneReadable: none of them can be read.
      UserError: processes have other pictures, or there is not enough memory.
    """
    from eir_jax.system import processes
    from eir_jax.system.progress import ProgressLine

    processes.check_equal("the pictures to embed", [_fingerprint(paths)])

    data = run.config.data
    side = data.resize or data.image_size
    chunk = min(run.config.evaluation_batch_size, len(paths))
    embed = _embed_by(run, chunk)
    kept, headers, greys, outputs, broken = [], [], [], [], []
    with (
        warnings.catch_warnings(),
        closing(ProgressLine("pictures", len(paths))) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's, of odd but readable files
        for start, futures in _read_chunks(folder, paths, side, data.fit, chunk):
            images = []
            for path, future in zip(paths[start:], futures, strict=False):
                try:
                    image, header = future.result()
                    images.append(image)
                    headers.append(header)
                    kept.append(path)
                except BrokenPicture as error:
                    broken.append(f"{path}: {error}")
            if images:
                outputs.append(embed(run.state, np.stack(images)))
                greys.append(grey_thumbnails(images))
            bar.update(start + len(futures))
    if not outputs:
        raise NoneReadable(f"none of {len(paths)} in {folder} is readable: {broken[0]}")
    for line in broken[:MOST_NAMED]:
        print(f"skipped {one_line(line)}", file=sys.stderr)
    if len(broken) > MOST_NAMED:
        print(f"skipped {len(broken) - MOST_NAMED:,} more", file=sys.stderr)
    embedding, feature = (np.concatenate(x) for x in zip(*outputs, strict=True))
    return Embeddings(
        embedding,
        feature,
        np.array(kept),
        None,
        None,
        _describe_folder(run, workdir, folder) | {"skipped": len(broken)},
        size=np.array([(x.width, x.height) for x in headers], np.int32),
        hash=np.array([x.digest.hex().encode() for x in headers], "S64"),
        grey=np.concatenate(greys),
    )


def embed_grown(
    run: "Run", workdir: Path, folder: Path, paths: Sequence[str], file: Path
) -> Embeddings:
    """Embed the pictures that a file of embeddings does not hold yet, and add them.

    Of those that it holds, made by the same weights of the same files, the rows are
    kept; what is no longer there is left out. Both are said on stderr.

    Args:
      run: the restored checkpoint.
      workdir: where it comes from, for the record.
      folder: that the paths are relative to.
      paths: of all pictures there, at least one.
      file: which need not exist.

    Raises:
      NoneReadable: there is nothing to keep, and none of them can be read.
      UserError: processes have other pictures, or there is not enough memory.
    """
    from eir_jax.system import processes

    meta = _describe_folder(run, workdir, folder)
    before, words = known_rows(file, meta, folder, paths)
    if words:
        print(words, file=sys.stderr)
    if before is None:
        return embed_pictures(run, workdir, folder, paths)
    assert before.path is not None
    known = {str(path) for path in before.path}
    missing = [path for path in paths if path not in known]
    new, skipped = None, len(missing)
    if not missing:  # as all processes find, or all go on to embed_pictures
        processes.check_equal("the pictures to embed", [_fingerprint(missing)])
    else:
        try:
            new = embed_pictures(run, workdir, folder, missing)
            skipped = new.meta["skipped"]
        except NoneReadable as error:
            print(error, file=sys.stderr)
    return together(before, new, meta | {"skipped": skipped})


def embed_file(
    run: "Run", workdir: Path, file: Path, split: str | None = None
) -> Embeddings:
    """Embed the images of an .npz; `split` chooses where it has 'train' and 'test'.

    Raises:
      UserError: it holds no images, or not of the size of the run's.
    """
    images, labels = read_images(file, split)
    side = run.config.data.resize or run.config.data.image_size
    if images.shape[1:3] != (side, side):
        raise UserError(
            f"{file} holds images of {images.shape[1]}x{images.shape[2]} pixels and "
            f"the run's test views are made of {side}x{side}; resize them, or give a "
            "folder"
        )
    source = {"source": str(file.resolve()), "split": split or ""}
    return _embed_arrays(run, images, labels, describe(run, workdir) | source)


def embed_arrays(
    run: "Run", workdir: Path, images: UInt8[np.ndarray, "row side side 3"]
) -> Embeddings:
    """Embed images in memory, of the size of the run's."""
    return _embed_arrays(run, images, None, describe(run, workdir) | {"source": ""})


def embed_split(
    run: "Run", workdir: Path, split: str, data_path: str | None = None
) -> Embeddings:
    """Embed the 'train' or 'test' split of the run's own data.

    Raises:
      UserError: there is no such split, or the data is not that of the checkpoint.
    """
    from eir_jax.data.dataset import existing
    from eir_jax.evaluation.restore import load_data

    dataset = load_data(run, data_path)
    found = existing(dataset, split)
    about = {"split": split, "class_names": dataset.class_names}
    files = [x.path for x in dataset.files if x.split == split and not x.broken]
    if files:  # a folder's pictures are known by their paths, so that they can be shown
        folder = Path(data_path or run.config.data.path).expanduser()
        pictures = embed_pictures(run, workdir, folder, files)
        assert pictures.path is not None
        row = {path: row for row, path in enumerate(files)}
        kept = [row[str(path)] for path in pictures.path]  # some may be gone since
        return dataclasses.replace(
            pictures,
            label=None if found.labels is None else found.labels[kept],
            meta=pictures.meta | about,
        )
    meta = describe(run, workdir) | about
    meta["source"] = f"{dataset.name} ({dataset.content_hash[:16]})"
    return _embed_arrays(run, found.images, found.labels, meta)


def describe(run: "Run", workdir: Path) -> dict[str, Any]:
    """Return what the embeddings of a checkpoint are made by, for `meta`."""
    from eir_jax.evaluation.embed import describe_view

    checksums = json.dumps(run.meta["checksums"], sort_keys=True)
    return {
        "workdir": str(workdir.resolve()),
        "step": int(run.state.step),
        "checkpoint": hashlib.sha256(checksums.encode()).hexdigest()[:16],
        "model": run.config.model.to_dict(),
        "image_size": run.config.data.image_size,
        "preparation": "images as they are",
        "transform": describe_view(run.config.data),
        "settings": run.meta.get("settings", {}),
    }


def _fingerprint(paths: Sequence[str]) -> str:
    """Return what tells two lists of pictures apart: their number and a digest."""
    digest = hashlib.sha256("\n".join(paths).encode(errors="surrogateescape"))
    return f"{len(paths):,} of --images and not in --out ({digest.hexdigest()[:8]})"


def _describe_folder(run: "Run", workdir: Path, folder: Path) -> dict[str, Any]:
    data = run.config.data
    return describe(run, workdir) | {
        "source": str(folder.resolve()),
        "preparation": preparation(data.resize or data.image_size, data.fit),
    }


def _embed_arrays(run, images, labels, meta) -> Embeddings:
    from eir_jax.system.progress import ProgressLine

    embed = _embed_by(run, min(run.config.evaluation_batch_size, len(images)))
    with closing(ProgressLine("images", len(images))) as bar:
        embedding, feature = embed(run.state, images, bar.update)
    index = np.arange(len(images), dtype=np.int32)
    hashes, greys = [], []
    for start in range(0, len(images), 512):  # a block of encoded ones is decoded
        block = images[start : start + 512]
        hashes += [hashlib.sha256(x.tobytes()).hexdigest().encode() for x in block]
        greys.append(grey_thumbnails(block))
    sides = (
        images.sizes[:, ::-1]
        if isinstance(images, EncodedImages)
        else np.tile([images.shape[2:0:-1]], (len(images), 1))
    )
    return Embeddings(
        embedding,
        feature,
        None,
        index,
        labels,
        meta,
        size=sides.astype(np.int32),
        hash=np.array(hashes, "S64"),
        grey=np.concatenate(greys),
    )


def grey_thumbnails(
    images: Iterable[UInt8[np.ndarray, "height width 3"]],
) -> UInt8[np.ndarray, "row side side"]:
    """Return the images in grey (ITU-R 601 luma) at 16x16, means of their pixels."""
    size, method = (GREY_SIDE, GREY_SIDE), Image.Resampling.BOX
    return np.stack(
        [
            np.asarray(Image.fromarray(image).convert("L").resize(size, method))
            for image in images
        ]
    )


def _embed_by(run: "Run", batch_size: int) -> Callable:
    """Return the run's embed, for fewer images a batch: one need not cost as 500."""
    from eir_jax.evaluation.embed import make_embed

    if batch_size == run.config.evaluation_batch_size:
        return run.embed
    config = run.config.copy_and_resolve_references()
    config.evaluation_batch_size = batch_size
    return make_embed(config, run.mesh)


def _read_chunks(
    folder: Path, paths: Sequence[str], size: int, fit: str, chunk: int
) -> Iterator[tuple[int, list[Future]]]:
    """Yield (first, its reads) chunk by chunk; the next one is read meanwhile."""
    ahead: list[tuple[int, list[Future]]] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), chunk):
            reads = [
                pool.submit(read_with_header, folder / path, size, fit)
                for path in paths[start : start + chunk]
            ]
            ahead.append((start, reads))
            if len(ahead) == 2:
                yield ahead.pop(0)
        yield from ahead
