"""A training view: its random numbers, and what they do to an image (tf.data).

The two halves are apart so that another implementation can share the first one:
`view_parameters` turns uniform numbers into a crop, factors and choices with whatever
array library it is given; `apply_view` carries them out in TensorFlow. TensorFlow is
imported inside the functions that need it: the rest of this file works without.
"""

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

if TYPE_CHECKING:
    import tensorflow as tf

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # red, green, blue; as torchvision
CROP_ATTEMPTS = 10  # as torchvision
NUM_UNIFORMS = 2 * CROP_ATTEMPTS + 10  # random numbers that one view takes
# The operations of the colour jitter by number, and the 24 orders of the four.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
JITTER_ORDERS = tuple(itertools.permutations(range(4)))


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
    """All that is random about one view of one image; scalars unless said otherwise."""

    crop: Any  # [4] float32, whole numbers: top, left, height, width in pixels
    jitter: Any  # bool: the next five are used
    brightness: Any  # float32 factor >= 0
    contrast: Any  # float32 factor >= 0
    saturation: Any  # float32 factor >= 0
    hue: Any  # float32 turns in [-.5, .5]
    order: Any  # float32, whole number: which of JITTER_ORDERS
    grey: Any  # bool
    flip: Any  # bool


def make_recipe(config: ConfigDict) -> Recipe:
    """Return the recipe that the settings describe."""
    data = config.data
    return Recipe(
        image_size=data.image_size, mean=data.mean, std=data.std, **config.views
    )


def view_parameters(
    uniforms: Any, recipe: Recipe, height: Any, width: Any, xp: Any
) -> ViewParameters:
    """Turn uniform random numbers into the parameters of a view.

    Crop and colour are distributed as in torchvision's RandomResizedCrop and
    ColorJitter. Every number has its place: turning one operation off leaves the others
    as they were.

    Args:
      uniforms: [NUM_UNIFORMS] float32 in [0, 1).
      height, width: of the image in pixels; floats, or float32 scalars of the library.
      xp: the array library: `numpy`, `jax.numpy` or `tensorflow`.
    """
    n = CROP_ATTEMPTS
    jitter, brightness, contrast, saturation, hue, order, grey, flip = (
        uniforms[2 * n + 2 + i] for i in range(8)
    )
    return ViewParameters(
        crop=_crop(uniforms, recipe, height, width, xp),
        jitter=jitter < recipe.jitter,
        brightness=_factor(brightness, recipe.brightness),
        contrast=_factor(contrast, recipe.contrast),
        saturation=_factor(saturation, recipe.saturation),
        hue=(2.0 * hue - 1.0) * recipe.hue,
        order=xp.floor(order * len(JITTER_ORDERS)),
        grey=grey < recipe.grey,
        flip=flip < recipe.flip,
    )


def _factor(uniform: Any, strength: float) -> Any:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return low + (high - low) * uniform


def _crop(uniforms: Any, recipe: Recipe, height: Any, width: Any, xp: Any) -> Any:
    """Return [4] top, left, height, width: the first of ten boxes that fits."""
    n = CROP_ATTEMPTS
    low_area, high_area = recipe.crop_area
    low_aspect, high_aspect = recipe.crop_aspect
    area = (low_area + (high_area - low_area) * uniforms[:n]) * (height * width)
    log_aspect = (
        math.log(low_aspect)
        + math.log(high_aspect / low_aspect) * (uniforms[n : 2 * n])
    )
    widths = xp.round(xp.sqrt(area * xp.exp(log_aspect)))
    heights = xp.round(xp.sqrt(area * xp.exp(-log_aspect)))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    # None fits: the largest centred box whose aspect is in range, as torchvision.
    rank = xp.where(fits, np.arange(n, 0, -1, dtype=np.int32), 0)
    first = xp.argmax(rank)
    found = rank[first] > 0
    w = xp.where(
        found, widths[first], xp.minimum(width, xp.round(height * high_aspect))
    )
    h = xp.where(
        found, heights[first], xp.minimum(height, xp.round(width / low_aspect))
    )
    top = xp.floor(
        xp.where(found, uniforms[2 * n] * (height - h + 1), (height - h) / 2)
    )
    left = xp.floor(
        xp.where(found, uniforms[2 * n + 1] * (width - w + 1), (width - w) / 2)
    )
    return xp.stack([top, left, h, w])


def draw_view(seed: Any, recipe: Recipe, height: Any, width: Any) -> ViewParameters:
    """Draw the parameters of one view, a pure function of `seed`.

    Args:
      seed: [2] int64, as `view_seed` makes it.
      height, width: of the image in pixels; int32 scalars, or numbers.
    """
    import tensorflow as tf

    uniforms = tf.random.stateless_uniform([NUM_UNIFORMS], seed, alg="philox")
    height, width = (tf.cast(side, tf.float32) for side in (height, width))
    return view_parameters(uniforms, recipe, height, width, tf)


def view_seed(seed: int, epoch: Any, index: Any, view: int) -> "tf.Tensor":
    """Return [2] int64, another one for each (seed, epoch, index, view).

    Args:
      seed: of the run, in [0, 2**62).
      epoch: int64 in [0, 2**31).
      index: of the instance, int64 in [0, 2**32).
      view: 0 or 1.
    """
    import tensorflow as tf

    return tf.stack([tf.constant(2 * seed + view, tf.int64), epoch * 2**32 + index])


def apply_view(
    image: "tf.Tensor", parameters: ViewParameters, recipe: Recipe
) -> "tf.Tensor":
    """Make a view: crop, resize, jitter, grey, flip, normalise.

    Args:
      image: uint8 [height, width, 3].

    Returns:
      float32 [image_size, image_size, 3], (value in [0, 1] - mean) / std.
    """
    import tensorflow as tf

    size = recipe.image_size
    top, left, height, width = tf.unstack(tf.cast(parameters.crop, tf.int32))
    view = image[top : top + height, left : left + width]
    view = resize(view, size, shrinks=not _never_larger(image.shape, size))
    if recipe.jitter >= 1:
        view = _colour_jitter(view, parameters)
    elif recipe.jitter > 0:
        view = tf.cond(
            parameters.jitter,
            lambda: _colour_jitter(view, parameters),
            lambda: view,
        )
    if recipe.grey > 0:
        view = tf.where(parameters.grey, _grey(view), view)
    if recipe.flip > 0:
        view = view[:, :: 1 - 2 * tf.cast(parameters.flip, tf.int32)]
    view = (view - tf.constant(recipe.mean)) / tf.constant(recipe.std)
    return tf.ensure_shape(view, [size, size, 3])


def _never_larger(shape: "tf.TensorShape", size: int) -> bool:
    return all(side is not None and side <= size for side in shape[:2])


def resize(image: "tf.Tensor", size: int, shrinks: bool = True) -> "tf.Tensor":
    """Resize bilinearly, with Pillow's antialiasing where the image is larger.

    Args:
      image: uint8 [height, width, 3].
      shrinks: whether it may be larger than `size`; quicker if not.

    Returns:
      float32 [size, size, 3] in [0, 1].
    """
    import tensorflow as tf

    if shrinks:
        scale = size / tf.cast(tf.shape(image)[:2], tf.float32)
        resized = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=[size, size],
            scale=scale,
            translation=[0.0, 0.0],
            kernel_type="triangle",
            antialias=True,
        )
    else:
        resized = tf.raw_ops.ResizeBilinear(
            images=image[None], size=[size, size], half_pixel_centers=True
        )
    return resized[0] * (1 / 255)


def _grey(image: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    return tf.reduce_sum(image * tf.constant(GREY_WEIGHTS), axis=-1, keepdims=True)


def _colour_jitter(image: "tf.Tensor", parameters: ViewParameters) -> "tf.Tensor":
    """Four operations in their drawn order, each clipped to [0, 1].

    All but hue are one formula, image * factor + (1 - factor) * (nothing, or the mean
    of the grey image, or the grey image): a branch less to take for each.
    """
    import tensorflow as tf

    order = tf.gather(tf.constant(JITTER_ORDERS), tf.cast(parameters.order, tf.int32))
    factors = tf.gather(
        tf.stack(
            [parameters.brightness, parameters.contrast, parameters.saturation, 1.0]
        ),
        order,
    )
    of_mean = (1 - factors) * tf.cast(order == CONTRAST, tf.float32)
    of_grey = (1 - factors) * tf.cast(order == SATURATION, tf.float32)

    def blend(image, place):
        grey = _grey(image)
        added = grey * of_grey[place] + tf.reduce_mean(grey) * of_mean[place]
        return tf.clip_by_value(image * factors[place] + added, 0.0, 1.0)

    for place in range(4):
        image = tf.cond(
            order[place] == HUE,
            lambda image=image: tf.image.adjust_hue(image, parameters.hue),
            lambda image=image, place=place: blend(image, place),
        )
    return image
