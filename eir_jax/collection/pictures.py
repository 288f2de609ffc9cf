"""The pictures that rows of a collection were made of, read anew."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from eir_jax.collection.embeddings import Embeddings, read_images
from eir_jax.data.pictures import BrokenPicture, read_picture, read_thumbnail
from eir_jax.system.errors import UserError


def squares(
    embeddings: Embeddings, rows: Int[np.ndarray, " row"], size: int
) -> UInt8[np.ndarray, "row size size 3"]:
    """Read the pictures of rows as squares of their centres, for a figure.

    Raises:
      UserError: one is not where it was, or is broken.
    """
    source = Path(embeddings.meta["source"])
    if embeddings.path is not None:
        return np.stack(
            [read_square(source / str(embeddings.path[row]), size) for row in rows]
        )
    method = Image.Resampling.NEAREST
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((size, size), method))
            for image in _images_of(embeddings, rows)
        ]
    )


def thumbnails(
    embeddings: Embeddings,
    size: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[UInt8[np.ndarray, "height width 3"] | None]:
    """Yield each row's picture whole and small; None: it is gone, or broken.

    Args:
      embeddings: the rows.
      size: pixels of the longer side, at most.
      progress: called with the number of pictures read.

    Raises:
      UserError: the rows are of an .npz that is not where it was.
    """
    source = Path(embeddings.meta["source"])
    if embeddings.path is None:
        images = _images_of(embeddings, np.arange(len(embeddings.embedding)))

        def read(row: int):
            image = Image.fromarray(images[row])
            image.thumbnail((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image)

    else:
        paths = embeddings.path

        def read(row: int):
            try:
                return read_thumbnail(source / str(paths[row]), size)
            except BrokenPicture:
                return None

    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd but readable files
        for start in range(0, len(embeddings.embedding), 256):
            stop = min(start + 256, len(embeddings.embedding))
            yield from pool.map(read, range(start, stop))
            if progress:
                progress(stop)


def _images_of(
    embeddings: Embeddings, rows: Int[np.ndarray, " row"]
) -> UInt8[np.ndarray, "row height width 3"]:
    """Return the images of an .npz that rows were made of."""
    source = Path(embeddings.meta["source"])
    if not source.is_file():
        raise UserError(
            f"the pictures are needed, and {source} is no file here; give "
            "--images=FILE.npz with those embedded"
        )
    images, _ = read_images(source, embeddings.meta.get("split") or None)
    assert embeddings.index is not None
    rows = embeddings.index[rows]
    if len(rows) and (rows.min() < 0 or rows.max() >= len(images)):
        raise UserError(
            f"{source} holds {len(images)} images and the embeddings are of row "
            f"{rows.max()}; give --images=FILE.npz with those embedded"
        )
    return images[rows]


def read_square(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Read a picture as `read_picture`.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return read_picture(path, size)
    except BrokenPicture as error:
        raise UserError(
            f"{path} cannot be read as a picture: {error}"
            + ("; give --images=DIR" if not path.exists() else "")
        ) from None
