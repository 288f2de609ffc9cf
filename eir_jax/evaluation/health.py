"""Label-free health of an embedding: is it spread out, or has it collapsed?"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eir_jax.data.encoded import EncodedImages
from eir_jax.evaluation.nearest import check_rows

COLLAPSED_STD = 0.1
"""`embedding_std` below which an embedding is called collapsed; spread out it is 1."""
MAX_ROWS = 4096  # of a split: more change a spectrum or a mean of pairs very little


def spread_rows(count: int) -> Int[np.ndarray, " row"]:
    """Return `MAX_ROWS` of `count` rows, or all, evenly spaced.

    Not the first ones: the pictures of a folder lie class by class.
    """
    taken = min(count, MAX_ROWS)
    return np.arange(taken) * count // max(taken, 1)


def measure(embedding: Float[np.ndarray, "row dim"]) -> dict[str, float]:
    """Return `rank_me`, `embedding_std` and `uniformity` of the `spread_rows`.

    Of fewer than two rows nothing: they have no spread.

    Raises:
        UserError: a row is not finite.
    """
    if len(embedding) < 2:
        return {}
    some = embedding[spread_rows(len(embedding))]
    rows = jnp.asarray(check_rows(some, "the embedding"))
    return {
        "rank_me": float(rank_me(rows)),
        "embedding_std": float(embedding_std(rows)),
        "uniformity": float(uniformity(rows)),
    }


PIXELS = 8
"""Side of the thumbnails that an embedding is compared with."""


def against_pixels(
    embedding: Float[np.ndarray, "row dim"],
    images: np.ndarray | EncodedImages,
    labels: Int[np.ndarray, " row"] | None,
) -> dict[str, float]:
    """Compare each row's nearest other row with that by 8x8 pixels (Euclidean).

    `nearest_by_pixels` is the share of rows, in [0, 1], whose nearest is the same: near
    1 the embedding sees little but the pixels. With labels (-1: none) `same_class` and
    `same_class_by_pixels` are the shares whose nearest is of their class: of the
    labelled rows, among these, without those that are alone in their class.

    Args:
      embedding: unit length; the `spread_rows` of it are looked at.
      images: of the same rows, uint8.
      labels: of the same rows, where known.
    """
    rows = spread_rows(len(embedding))
    embedding = np.asarray(embedding, np.float32)[rows]
    if len(embedding) < 3:
        return {}
    pixels = thumbnails(images, rows)
    near, by_pixels = _nearest_other(embedding), _nearest_other(pixels)
    found = {"nearest_by_pixels": float((near == by_pixels).mean())}
    if labels is None:
        return found
    labels = np.asarray(labels)[rows]
    known = np.flatnonzero(labels >= 0)
    labels = labels[known]
    classes, inverse, count = np.unique(labels, return_inverse=True, return_counts=True)
    asked = count[inverse] > 1  # nobody is near one that is alone in its class
    if len(known) > 2 and len(classes) > 1 and asked.any():
        if len(known) < len(embedding):
            near, by_pixels = map(_nearest_other, (embedding[known], pixels[known]))
        for name, index in (("", near), ("_by_pixels", by_pixels)):
            same = (labels[index] == labels)[asked]
            found[f"same_class{name}"] = float(same.mean())
    return found


def pixels_warning(found: dict[str, float]) -> str:
    """Say that neighbours are no better than those by pixels; '' where they are."""
    same = found.get("same_class", 1.0)
    if same < 1 and same <= found["same_class_by_pixels"]:
        return (
            "the nearest image is of the same class no more often "
            f"({found['same_class']:.1%}) than the nearest by {PIXELS}x{PIXELS} pixels "
            f"({found['same_class_by_pixels']:.1%}); train longer, or on more images"
        )
    if "same_class" not in found and found.get("nearest_by_pixels", 0) > 0.5:
        return (
            f"the nearest image is the nearest by {PIXELS}x{PIXELS} pixels for "
            f"{found['nearest_by_pixels']:.0%} of them; train longer, or on more images"
        )
    return ""


def thumbnails(
    images: np.ndarray | EncodedImages, some: Int[np.ndarray, " row"] | None = None
) -> Float[np.ndarray, "row pixel"]:
    """Return uint8 images [n, side, side, 3] as means of 8x8 parts, in a row each.

    All of them, or `some`: no more than a few hundred lie in memory anew.
    """
    some = np.arange(len(images)) if some is None else some
    side = images.shape[1]
    edges = np.unique(np.linspace(0, side, PIXELS + 1).astype(int))
    sizes = np.diff(edges).astype(np.float32)
    rows = []
    for start in range(0, len(some), 512):  # encoded ones are decoded then
        block = np.asarray(images[some[start : start + 512]], np.float32)
        for axis in (1, 2):
            block = np.add.reduceat(block, edges[:-1], axis=axis)
        rows.append(block / (sizes[:, None, None] * sizes[None, :, None]))
    return np.concatenate(rows).reshape(len(some), -1)


def _nearest_other(rows: Float[np.ndarray, "row dim"]) -> Int[np.ndarray, " row"]:
    """Return the row that is nearest to each, of equal ones the first."""
    rows = rows - rows.mean(0, keepdims=True)
    score = rows @ rows.T - (rows**2).sum(1)[None] / 2
    np.fill_diagonal(score, -np.inf)
    return score.argmax(1)


def embedding_std(embedding: Float[Array, "row dim"]) -> Float[Array, ""]:
    """Return the standard deviation over rows, root-summed over dimensions; in [0, 1].

    1 for unit vectors whose mean is zero, 0 where all are equal.
    """
    return jnp.sqrt(jnp.sum(jnp.var(embedding, axis=0)))


def rank_me(embedding: Float[Array, "row dim"]) -> Float[Array, ""]:
    """Return the effective rank, in [1, dim]: exp of the singular values' entropy.

    RankMe (Garrido et al., 2023), Eq. 1.
    """
    values = jnp.linalg.svd(embedding, compute_uv=False)
    share = values / jnp.sum(values) + 1e-7
    return jnp.exp(-jnp.sum(share * jnp.log(share)))


def alignment(
    view1: Float[Array, "row dim"], view2: Float[Array, "row dim"]
) -> Float[Array, ""]:
    """Return the mean squared distance of two views, in [0, 4]; lower is closer.

    Wang and Isola (2020), with alpha = 2.
    """
    return jnp.mean(jnp.sum(jnp.square(view1 - view2), axis=1))


def of_batch(embedding: dict[str, Float[Array, "row dim"]]) -> dict[str, Array]:
    """Return the health of a training batch, whose images have names.

    `embedding_std` of the first, and where there are two views their `alignment`.
    """
    found = {"embedding_std": embedding_std(next(iter(embedding.values())))}
    if {"view1", "view2"} <= embedding.keys():
        found["alignment"] = alignment(embedding["view1"], embedding["view2"])
    return found


def uniformity(embedding: Float[Array, "row dim"]) -> Float[Array, ""]:
    """Return log of the mean of exp(-2 d^2) over pairs, in [-8, 0]; lower is wider.

    Wang and Isola (2020), with t = 2. Rows must have unit length; a row is not paired
    with itself.
    """
    rows = len(embedding)
    cosine = jnp.matmul(embedding, embedding.T, precision=jax.lax.Precision.HIGHEST)
    exponent = jnp.where(jnp.eye(rows, dtype=bool), -jnp.inf, 4 * cosine - 4)
    return jax.nn.logsumexp(exponent) - jnp.log(rows * (rows - 1))


def collapse_warning(std: float) -> str:
    """Return what a user should know when `embedding_std` is below COLLAPSED_STD."""
    return (
        f"the embedding has collapsed: its standard deviation is {std:.4f} (1 when "
        "spread out); all images look alike to it"
    )
