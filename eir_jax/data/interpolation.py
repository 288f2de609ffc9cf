"""Eq. 7: the image of two instances, on arrays of NumPy or JAX or tensors of TF.

Notation: x_i -> view1[i], x_j -> other[i] (view 2 of i's partner), r -> ratio[i].
"""

from typing import Any


def mix(kind: str, view1: Any, other: Any, ratio: Any, box: Any, xp: Any) -> Any:
    """Return the mixed images by `kind`, 'cutmix' or 'mixup'."""
    if kind == "cutmix":
        return cutmix(view1, other, box, xp)
    return mixup(view1, other, ratio)


def mixup(view1: Any, other: Any, ratio: Any) -> Any:
    """Return ratio * view1 + (1 - ratio) * other (Zhang et al., 2018).

    Args:
      view1, other: float32 [batch, height, width, 3].
      ratio: float32 [batch], in [0, 1].
    """
    ratio = ratio[:, None, None, None]
    return ratio * view1 + (1 - ratio) * other


def cutmix(view1: Any, other: Any, box: Any, xp: Any) -> Any:
    """Return view1 with the box taken from `other` (Yun et al., 2019).

    Args:
      view1, other: float32 [batch, height, width, 3].
      box: int32 [batch, 4]: top, left, bottom, right in pixels; the last two outside.
      xp: the array library: `numpy`, `jax.numpy` or `tensorflow`.
    """
    top, left, bottom, right = (box[:, i, None, None, None] for i in range(4))
    y = xp.range(view1.shape[1]) if hasattr(xp, "range") else xp.arange(view1.shape[1])
    x = xp.range(view1.shape[2]) if hasattr(xp, "range") else xp.arange(view1.shape[2])
    y, x = y[None, :, None, None], x[None, None, :, None]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return xp.where(inside, other, view1)
