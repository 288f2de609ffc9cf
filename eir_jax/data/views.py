"""What is random about a training view: the recipe, and the parameters drawn from it.

Uniform numbers become boxes, factors and choices with whatever array library is given,
so that both pipelines draw from one recipe. Needs neither TensorFlow nor JAX.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from ml_collections import ConfigDict

CROP_ATTEMPTS = 10  # as torchvision
NUM_UNIFORMS = 2 * CROP_ATTEMPTS + 10  # random numbers that one view takes
NUM_COEFFICIENTS = 25  # numbers that say what is done to one image
# The operations of the colour jitter by number, and the 24 orders of the four.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
JITTER_ORDERS = tuple(itertools.permutations(range(4)))
# Of each order: the three operations beside hue, and which of them come before it.
_OTHERS = np.array([[op for op in order if op != HUE] for order in JITTER_ORDERS])
_EARLIER = np.array([np.arange(3) < order.index(HUE) for order in JITTER_ORDERS])


class Slot(NamedTuple):
    """An image of each instance that is made and encoded."""

    name: str
    """In the batch: 'view1', 'view2', 'weak', a view without colour jitter and grey,
    or 'mixed', which is made of the first two (Eq. 7)."""
    statistics: int = 0
    """Slots of equal numbers are normalised together in batch norm."""
    encoder: Literal["online", "key"] = "online"
    """By which it is encoded: the trained one, or its moving average (MoCo)."""


VIEW_NUMBERS = {"view1": 0, "view2": 1, "weak": 2}
"""By which a view's random numbers are drawn."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a training view is made: `config.views` and the image part of `config.data`.

    The fields are explained in configs/base.py.
    """

    image_size: int
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grey: float
    flip: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ViewParameters(NamedTuple):
    """All that is random about views of n images; [n] unless said otherwise."""

    crop: Any  # [n, 4] float32, whole numbers: top, left, height, width in pixels
    jitter: Any  # bool: the next five are used
    brightness: Any  # float32 factor >= 0
    contrast: Any  # float32 factor >= 0
    saturation: Any  # float32 factor >= 0
    hue: Any  # float32 turns in [-.5, .5]
    order: Any  # int32: which of JITTER_ORDERS
    grey: Any  # bool
    flip: Any  # bool


def make_recipe(config: ConfigDict) -> Recipe:
    """Return the recipe that the settings describe."""
    data = config.data
    return Recipe(
        image_size=data.image_size, mean=data.mean, std=data.std, **config.views
    )


def recipe_of(view: str, recipe: Recipe) -> Recipe:
    """Return how one of VIEW_NUMBERS is made: 'weak' keeps the colours."""
    if view == "weak":
        return dataclasses.replace(recipe, jitter=0.0, grey=0.0)
    return recipe


def drawn_views(slots: Sequence[Slot]) -> list[str]:
    """Return the views of each image that the slots need, the mixed images' too."""
    names = [slot.name for slot in slots if slot.name in VIEW_NUMBERS]
    if mixes(slots) and "view2" not in names:
        names.append("view2")
    return names


def mixes(slots: Sequence[Slot]) -> bool:
    """Tell whether one of the slots is the mixed image."""
    return any(slot.name == "mixed" for slot in slots)


def view_parameters(
    uniforms: Any, recipe: Recipe, height: Any, width: Any, xp: Any
) -> ViewParameters:
    """Turn uniform random numbers into the parameters of views.

    Crop and colour are distributed as in torchvision's RandomResizedCrop and
    ColorJitter. Every number has its place: turning one operation off leaves the others
    as they were.

    Args:
      uniforms: [n, NUM_UNIFORMS] float32 in [0, 1).
      recipe: the ranges and probabilities.
      height, width: of the images in pixels; a number, or [n].
      xp: the array library: `numpy` or `jax.numpy`.
    """
    n = CROP_ATTEMPTS
    jitter, brightness, contrast, saturation, hue, order, grey, flip = (
        uniforms[:, 2 * n + 2 + i] for i in range(8)
    )
    return ViewParameters(
        crop=_crop(uniforms, recipe, height, width, xp),
        jitter=jitter < recipe.jitter,
        brightness=_factor(brightness, recipe.brightness),
        contrast=_factor(contrast, recipe.contrast),
        saturation=_factor(saturation, recipe.saturation),
        hue=(2 * hue - 1) * recipe.hue,
        order=xp.floor(order * len(JITTER_ORDERS)).astype(np.int32),
        grey=grey < recipe.grey,
        flip=flip < recipe.flip,
    )


def coefficients(parameters: ViewParameters, xp: Any) -> Any:
    """Return the parameters as the numbers that `augment.apply_views` calculates with.

    The colour jitter but for hue is six blends, three before hue and three after it. A
    blend is image * a + mean of the grey image * b + grey image * c, clipped to [0, 1];
    where an operation comes on the other side of hue, (a, b, c) is (1, 0, 0).

    Returns:
      [n, NUM_COEFFICIENTS] float32: the crop box, flip and grey (0 or 1), hue in turns,
      then (a, b, c) of the six blends in the order in which they are done.
    """
    p = parameters
    others = xp.asarray(_OTHERS, np.int32)[p.order]  # [n, 3]
    earlier = xp.asarray(_EARLIER)[p.order]
    factors = xp.stack([p.brightness, p.contrast, p.saturation], axis=1)
    factors = xp.take_along_axis(factors, others, axis=1)
    used = p.jitter[:, None]
    before = xp.where(used & earlier, factors, 1)
    after = xp.where(used & ~earlier, factors, 1)
    factors = xp.concatenate([before, after], axis=1)
    others = xp.concatenate([others, others], axis=1)
    rest = 1 - factors
    blends = [factors, rest * (others == CONTRAST), rest * (others == SATURATION)]
    blends = xp.stack(blends, axis=2).reshape(-1, 18)
    single = xp.stack([p.flip, p.grey, xp.where(p.jitter, p.hue, 0)], axis=1)
    columns = [p.crop, single.astype(np.float32), blends.astype(np.float32)]
    return xp.concatenate(columns, axis=1)


def _factor(uniform: Any, strength: float) -> Any:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return low + (high - low) * uniform


def _crop(uniforms: Any, recipe: Recipe, height: Any, width: Any, xp: Any) -> Any:
    """Return [n, 4] top, left, height, width: the first of ten boxes that fits."""
    n = CROP_ATTEMPTS
    height = xp.broadcast_to(xp.asarray(height, np.float32), uniforms.shape[:1])
    width = xp.broadcast_to(xp.asarray(width, np.float32), uniforms.shape[:1])
    low_area, high_area = recipe.crop_area
    low_aspect, high_aspect = recipe.crop_aspect
    share = low_area + (high_area - low_area) * uniforms[:, :n]
    area = share * (height * width)[:, None]
    log_aspect = (
        math.log(low_aspect)
        + math.log(high_aspect / low_aspect) * (uniforms[:, n : 2 * n])
    )
    widths = xp.round(xp.sqrt(area * xp.exp(log_aspect)))
    heights = xp.round(xp.sqrt(area * xp.exp(-log_aspect)))
    fits = (widths > 0) & (widths <= width[:, None])
    fits &= (heights > 0) & (heights <= height[:, None])
    first = xp.argmax(fits, axis=1)[:, None]
    found = xp.take_along_axis(fits, first, axis=1)[:, 0]
    w = xp.take_along_axis(widths, first, axis=1)[:, 0]
    h = xp.take_along_axis(heights, first, axis=1)[:, 0]
    # None fits: the largest centred box whose aspect is in range, as torchvision.
    w = xp.where(found, w, xp.minimum(width, xp.round(height * high_aspect)))
    h = xp.where(found, h, xp.minimum(height, xp.round(width / low_aspect)))
    down = xp.where(found, uniforms[:, 2 * n] * (height - h + 1), (height - h) / 2)
    right = xp.where(found, uniforms[:, 2 * n + 1] * (width - w + 1), (width - w) / 2)
    # A product with a number just below 1 can round up to the bound itself.
    top = xp.minimum(xp.floor(down), height - h)
    left = xp.minimum(xp.floor(right), width - w)
    return xp.stack([top, left, h, w], axis=1).astype(np.float32)
