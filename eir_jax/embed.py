"""Embed pictures by a trained encoder: `python -m eir_jax.embed --workdir=DIR`."""

import dataclasses
import hashlib
import json
import os
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from eir_jax import cli, compilation_cache, processes
from eir_jax.data.pictures import (
    SUFFIXES,
    BrokenPicture,
    list_pictures,
    preparation,
    read_picture,
)
from eir_jax.errors import UserError

if TYPE_CHECKING:
    from eir_jax.evaluation.restore import Run

MOST_NAMED = 20  # broken pictures; the others are counted
DESCRIPTION = """\
Restore a checkpoint, embed pictures, and write one .npz: `embedding` [n, 128] of unit
length, `feature` [n, 512] (before the head), `path` (relative to the folder) or
`index`, `label` where known, and `meta`, JSON that says what they are. But for --split
it needs no data set, and no TensorFlow. --config.evaluation_batch_size=N embeds N at a
time.

  python -m eir_jax.embed --workdir=DIR --images=PICTURES --out=pictures.npz
  python -m eir_jax.embed --workdir=DIR --images=FILE.npz --out=arrays.npz
  python -m eir_jax.embed --workdir=DIR --split=test --out=test.npz
"""


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


def main(argv: list[str]) -> int:
    """Parse the command line, embed and write; return the exit status."""
    parser = cli.Parser(prog="eir_jax.embed", description=DESCRIPTION)
    parser.add_argument(
        "--workdir", required=True, type=Path, help="folder of a run of eir_jax.main"
    )
    parser.add_argument(
        "--step",
        default="last",
        help="checkpoint: its step, 'best' or 'last' (default)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        help=f"a folder, searched to the bottom for {' '.join(SUFFIXES)}; or an .npz "
        "with 'images' (or 'train_images', 'test_images') uint8 [n, size, size, 3]",
    )
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="of the run's own data; of the .npz where --images is one",
    )
    parser.add_argument("--out", required=True, type=Path, help="the .npz to write")
    parser.add_argument(
        "--data_path", help="where the run's own data lies now, for --split"
    )
    processes.add_flags(parser)
    args, overrides = parser.parse_known_args(argv)
    if args.images is None and args.split is None:
        parser.error("give --images=DIR, --images=FILE.npz or --split=train or test")
    if args.data_path is not None and args.images is not None:
        parser.error("--data_path goes with --split, not with --images")
    if args.images is not None and not args.images.exists():
        raise UserError(f"there is no folder or file {args.images} (--images)")
    if args.split and args.images is not None and args.images.is_dir():
        raise UserError(f"{args.images} is a folder and has no --split={args.split}")

    processes.start(args)
    compilation_cache.keep_compiled()
    with written_whole(args.out) as write:  # refuses before the work, not after
        from eir_jax.evaluation.restore import restore_run

        paths = None
        if args.images is not None and args.images.is_dir():
            paths = existing_pictures(args.images)
        run = restore_run(args.workdir, args.step, overrides)
        if paths is not None:
            found = embed_pictures(run, args.workdir, args.images, paths)
        elif args.images is not None:
            found = embed_file(run, args.workdir, args.images, args.split)
        else:
            found = embed_split(run, args.workdir, args.split, args.data_path)
        write(found)
    rows, dim = found.embedding.shape
    skipped = found.meta.get("skipped", 0)
    print(
        f"{args.out}: {rows:,} embeddings of {dim} dimensions, by step "
        f"{found.meta['step']}" + (f"; {skipped:,} broken skipped" if skipped else "")
    )
    return 0


def existing_pictures(folder: Path) -> list[str]:
    """Return the pictures of a folder, as `list_pictures`.

    Raises:
      UserError: there are none.
    """
    paths = list_pictures(folder)
    if not paths:
        raise UserError(f"{folder} holds no pictures ({' '.join(SUFFIXES)})")
    return paths


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
      UserError: none of them can be read.
    """
    from eir_jax.metrics import ProgressLine

    data = run.config.data
    side = data.resize or data.image_size
    chunk = min(run.config.evaluation_batch_size, len(paths))
    embed = _embed_by(run, chunk)
    kept, outputs, broken = [], [], []
    with (
        warnings.catch_warnings(),
        closing(ProgressLine("pictures", len(paths))) as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's, of odd but readable files
        for start, futures in _read_chunks(folder, paths, side, data.fit, chunk):
            images = []
            for path, future in zip(paths[start:], futures, strict=False):
                try:
                    images.append(future.result())
                    kept.append(path)
                except BrokenPicture as error:
                    broken.append(f"{path}: {error}")
            if images:
                outputs.append(embed(run.state, np.stack(images)))
            bar.update(start + len(futures))
    if not outputs:
        raise UserError(f"none of {len(paths)} in {folder} is readable: {broken[0]}")
    for line in broken[:MOST_NAMED]:
        print(f"skipped {_one_line(line)}", file=sys.stderr)
    if len(broken) > MOST_NAMED:
        print(f"skipped {len(broken) - MOST_NAMED:,} more", file=sys.stderr)
    embedding, feature = (np.concatenate(x) for x in zip(*outputs, strict=True))
    meta = describe(run, workdir) | {
        "source": str(folder.resolve()),
        "skipped": len(broken),
        "preparation": preparation(side, data.fit),
    }
    return Embeddings(embedding, feature, np.array(kept), None, None, meta)


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


def embed_split(
    run: "Run", workdir: Path, split: str, data_path: str | None = None
) -> Embeddings:
    """Embed the 'train' or 'test' split of the run's own data.

    Raises:
      UserError: there is no such split, or the data is not that of the checkpoint.
    """
    from eir_jax.data.sources import existing
    from eir_jax.evaluation.restore import load_data

    dataset = load_data(run, data_path)
    found = existing(dataset, split)
    meta = describe(run, workdir) | {
        "source": f"{dataset.name} ({dataset.content_hash[:16]})",
        "split": split,
        "class_names": dataset.class_names,
    }
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
    }


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
        raise UserError(f"there is no file {file}") from None
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
    if file.is_dir():
        raise UserError(f"{file} is a folder; give the name of a file (--out)")
    part = file.with_name(f".{file.name}.{os.getpid()}.part")

    def write(found: Embeddings) -> None:
        arrays = vars(found) | {"meta": json.dumps(found.meta)}
        try:
            np.savez(stream, **{k: v for k, v in arrays.items() if v is not None})
            stream.close()
            os.replace(part, file)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error}") from None

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = part.open("wb")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error}") from None
    with stream:
        try:
            yield write
        finally:
            part.unlink(missing_ok=True)


def _embed_arrays(run, images, labels, meta) -> Embeddings:
    from eir_jax.metrics import ProgressLine

    embed = _embed_by(run, min(run.config.evaluation_batch_size, len(images)))
    with closing(ProgressLine("images", len(images))) as bar:
        embedding, feature = embed(run.state, images, bar.update)
    if labels is not None:
        labels = labels.astype(np.int32)
    index = np.arange(len(images), dtype=np.int32)
    return Embeddings(embedding, feature, None, index, labels, meta)


def _embed_by(run: "Run", batch_size: int) -> Callable:
    """Return the run's embed, for fewer images a batch: one need not cost as 500."""
    from eir_jax.evaluation.embed import make_embed
    from eir_jax.models.encoder import make_encoder

    if batch_size == run.config.evaluation_batch_size:
        return run.embed
    config = run.config.copy_and_resolve_references()
    config.evaluation_batch_size = batch_size
    return make_embed(config, make_encoder(config, exact=True), run.mesh)


def _read_chunks(
    folder: Path, paths: Sequence[str], size: int, fit: str, chunk: int
) -> Iterator[tuple[int, list[Future]]]:
    """Yield (first, its reads) chunk by chunk; the next one is read meanwhile."""
    ahead: list[tuple[int, list[Future]]] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), chunk):
            reads = [
                pool.submit(read_picture, folder / path, size, fit)
                for path in paths[start : start + chunk]
            ]
            ahead.append((start, reads))
            if len(ahead) == 2:
                yield ahead.pop(0)
        yield from ahead


def _check_column(column, key, kind, rows, file) -> None:
    if column.shape != (rows,) or not np.issubdtype(column.dtype, kind):
        words = "strings" if kind is np.str_ else "whole numbers"
        raise UserError(
            f"'{key}' of {file} is {column.dtype} {list(column.shape)}; it must hold "
            f"{rows} {words}"
        )


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


if __name__ == "__main__":
    cli.run(main)
