"""Pictures that stay encoded, in memory or on disk, and read like an array of pixels.

Needs neither TensorFlow nor JAX.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from eir_jax.data.pictures import BrokenPicture, read_header, read_picture, read_whole
from eir_jax.system.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImages:
    """What reads like uint8 [n, side, side, 3] and decodes only what is asked for.

    An index is a whole number, a slice, an array of whole numbers or a mask: it gives
    the pixels, as `read_picture` makes them. `select` and `read` decode nothing.
    """

    contents: Sequence[bytes] | Sequence[str]
    """The encoded files, or where they lie below `folder`."""
    rows: Int[np.ndarray, " n"]
    """Which of `contents` the images are."""
    sizes: Int[np.ndarray, "n 2"]
    """Height and width of each image, after EXIF rotation: int32."""
    plain: Bool[np.ndarray, " n"]
    """Whether TensorFlow decodes the same picture from `read`, bit by bit with its
    dct_method='INTEGER_ACCURATE': a grey or colour JPEG that is not rotated. The others
    come from `picture`."""
    file_sizes: Int[np.ndarray, " n"]
    """Bytes of each encoded file."""
    side: int
    """Of the square, in pixels."""
    fit: str
    """'crop' or 'squash', as in `read_picture`."""
    folder: Path | None = None
    digests: UInt8[np.ndarray, "n 32"] | None = None
    """SHA-256 of each file below `folder`; of those in memory there is no need."""

    @staticmethod
    def from_bytes(
        contents: Sequence[bytes], side: int, fit: str = "crop"
    ) -> "EncodedImages":
        """Hold encoded pictures in memory; their headers are read, no pixels.

        Raises:
          UserError: one of them is no picture.
        """
        headers, file_sizes = [], []
        for row, content in enumerate(contents):
            try:
                headers.append(read_header(content, decode=False))
            except BrokenPicture as error:
                raise UserError(f"image {row} cannot be read: {error}") from None
            file_sizes.append(len(content))
        return EncodedImages(
            contents,
            np.arange(len(headers)),
            np.array([h[:2] for h in headers], np.int32).reshape(-1, 2),
            np.array([h.plain for h in headers], bool),
            np.array(file_sizes, np.int64),
            side,
            fit,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[n, side, side, 3]."""
        return len(self.rows), self.side, self.side, 3

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return 4

    @property
    def dtype(self) -> np.dtype:
        """The pixels' type, uint8."""
        return np.dtype(np.uint8)

    @property
    def in_memory(self) -> bool:
        """Whether the encoded files are held, not read when they are asked for."""
        return self.folder is None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        if isinstance(index, (int, np.integer)):
            return self._square(range(len(self))[index])
        chosen = np.arange(len(self))[index]
        if chosen.ndim != 1:
            raise IndexError("the first axis alone can be indexed, by one dimension")
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            images[place] = self._square(chosen[place])

        with ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL
            for _ in pool.map(fill, range(len(chosen))):
                pass
        return images

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        images = self[:]
        return images if dtype is None else images.astype(dtype)

    def select(self, index: Any) -> "EncodedImages":
        """Return the images of a slice, an array of rows or a mask, still encoded."""
        return dataclasses.replace(
            self,
            rows=self.rows[index],
            sizes=self.sizes[index],
            plain=self.plain[index],
            file_sizes=self.file_sizes[index],
            digests=None if self.digests is None else self.digests[index],
        )

    def read(self, row: int) -> bytes:
        """Return an encoded file.

        Raises:
          UserError: it is no longer there.
        """
        source = self._source(row)
        if isinstance(source, bytes):
            return source
        try:
            return source.read_bytes()
        except OSError as error:
            raise self._lost(row, error.strerror or str(error)) from None

    def picture(self, row: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return a whole picture at its own size, upright.

        Raises:
          UserError: it can no longer be read.
        """
        try:
            return read_whole(self._source(row))
        except BrokenPicture as error:
            raise self._lost(row, str(error)) from None

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the encoded files, of those on disk by their digests."""
        digest = self._begun_hash()
        if self.digests is not None:
            digest.update(np.ascontiguousarray(self.digests).data)
            return digest.hexdigest()
        return self._hash_of_contents(digest)

    @cached_property
    def names_hash(self) -> str:
        """SHA-256 of the files' paths and sizes: what was taken for their content.

        Before there were digests; it tells runs of that time their pictures.
        """
        return self._hash_of_contents(self._begun_hash())

    def _begun_hash(self):
        return hashlib.sha256(f"{self.dtype}{self.shape}{self.fit}".encode())

    def _hash_of_contents(self, digest) -> str:
        for row, size in zip(self.rows, self.file_sizes, strict=True):
            content = self.contents[row]
            if isinstance(content, str):
                content = content.encode("utf-8", "surrogateescape")
            digest.update(f"{len(content)} {size} ".encode())
            digest.update(content)
        return digest.hexdigest()

    def _square(self, row: int) -> UInt8[np.ndarray, "side side 3"]:
        try:
            return read_picture(self._source(row), self.side, self.fit)
        except BrokenPicture as error:
            raise self._lost(row, str(error)) from None

    def _source(self, row: int) -> bytes | Path:
        content = self.contents[self.rows[row]]
        if isinstance(content, bytes):
            return content
        assert self.folder is not None
        return self.folder / content

    def _lost(self, row: int, why: str) -> UserError:
        source = self._source(row)
        name = f"image {row}" if isinstance(source, bytes) else str(source)
        return UserError(f"{name} can no longer be read: {why}; put it back")
