"""What the drawn numbers of a view do to the pixels, in TensorFlow or in JAX.

One implementation for both pipelines, of operations that the two libraries call alike.
It works on whole batches of colour planes: crop, resize and flip are two matrix
products, and every colour operation is done once for all images.
"""

from typing import Any

import numpy as np

from eir_jax.data.views import Recipe

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # red, green, blue; as torchvision


def crop_planes(planes: Any, coefficients: Any, size: int, xp: Any) -> Any:
    """Crop, resize and flip, with Pillow's bilinear filter (antialiased).

    Args:
      planes: float32 [n, 3, height, width] in [0, 255].
      coefficients: [n, NUM_COEFFICIENTS] float32, see `views.coefficients`.
      size: pixels, of the sides of the view.
      xp: the array library: `jax.numpy` or `tensorflow`.

    Returns:
      float32 [n, 3, size, size] in [0, 1].
    """
    top, left, height, width, flip = (coefficients[:, i, None] for i in range(5))
    place = np.arange(size, dtype=np.float32)[None] + 0.5
    rows = _filter(place, top, height, planes.shape[2], xp)
    # Column x of a flipped view is column size - x of the view.
    columns = _filter(
        place + flip * (size - 2 * place), left, width, planes.shape[3], xp
    )
    resized = xp.matmul(rows[:, None], planes)
    return xp.matmul(resized, xp.transpose(columns, (0, 2, 1))[:, None]) * (1 / 255)


def _filter(place: Any, start: Any, length: Any, full: int, xp: Any) -> Any:
    """Return [n, size, full]: what each of the `full` pixels adds to each of `size`.

    Args:
      place: [1 or n, size], pixel centres of the view, in (0, size).
      start, length: [n, 1], the part of the picture that the view shows.
      full: pixels of the picture.
      xp: the array library.
    """
    scale = length / place.shape[1]
    centre = (start + place * scale)[:, :, None]
    reach = xp.maximum(scale, 1.0)[:, :, None]
    pixel = (np.arange(full, dtype=np.float32) + 0.5)[None, None]
    inside = (pixel > start[:, :, None]) & (pixel < (start + length)[:, :, None])
    weight = xp.where(inside, xp.maximum(1 - xp.abs(pixel - centre) / reach, 0.0), 0.0)
    return weight / xp.matmul(weight, np.ones((full, 1), np.float32))


def recolour(planes: Any, coefficients: Any, recipe: Recipe, xp: Any) -> Any:
    """Jitter the colours, turn some images grey, and normalise.

    Args:
      planes: float32 [n, 3, size, size] in [0, 1].
      coefficients: [n, NUM_COEFFICIENTS] float32, see `views.coefficients`.
      recipe: what it says is never done is left out.
      xp: the array library: `jax.numpy` or `tensorflow`.

    Returns:
      float32 [n, size, size, 3], (value in [0, 1] - mean) / std.
    """
    size = planes.shape[2]
    pixels = xp.reshape(planes, (-1, 3, size * size))
    if recipe.jitter > 0:
        blends = xp.reshape(coefficients[:, 7:], (-1, 6, 3))
        for place in range(6):
            if place == 3 and recipe.hue > 0:
                pixels = _turn_hue(pixels, coefficients[:, 6, None], xp)
            pixels = _blend(pixels, blends[:, place], xp)
    if recipe.grey > 0:
        grey = xp.stack([_grey(pixels)] * 3, axis=1)
        pixels = xp.where(coefficients[:, 5, None, None] > 0, grey, pixels)
    mean, std = (
        np.array(x, np.float32)[None, :, None] for x in (recipe.mean, recipe.std)
    )
    pixels = xp.transpose((pixels - mean) / std, (0, 2, 1))
    return xp.reshape(pixels, (-1, size, size, 3))


def _grey(pixels: Any) -> Any:
    red, green, blue = GREY_WEIGHTS
    return red * pixels[:, 0] + green * pixels[:, 1] + blue * pixels[:, 2]


def _blend(pixels: Any, blend: Any, xp: Any) -> Any:
    """Return image * a + mean of the grey image * b + grey image * c, in [0, 1].

    Args:
      pixels: [n, 3, pixels].
      blend: [n, 3]: a, b, c.
      xp: the array library.
    """
    grey = _grey(pixels)
    count = pixels.shape[2]
    mean = xp.matmul(grey, np.full((count, 1), 1 / count, np.float32))
    added = mean * blend[:, 1, None] + grey * blend[:, 2, None]
    mixed = pixels * blend[:, 0, None, None] + added[:, None]
    return xp.minimum(xp.maximum(mixed, 0.0), 1.0)


def _turn_hue(pixels: Any, hue: Any, xp: Any) -> Any:
    """Turn the hue, in HSV, by `hue` [n, 1] turns; as colorsys.

    Args:
      pixels: [n, 3, pixels].
      hue: [n, 1] turns.
      xp: the array library.
    """
    red, green, blue = (pixels[:, i] for i in range(3))
    low = xp.minimum(xp.minimum(red, green), blue)
    high = xp.maximum(xp.maximum(red, green), blue)
    chroma = high - low
    scale = 1 / xp.where(chroma > 0, chroma, xp.ones_like(chroma))
    sixths = xp.where(
        high == red,
        (green - blue) * scale,
        xp.where(high == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    turned = sixths + 6 * hue
    turned = turned - 6 * xp.floor(turned * (1 / 6))

    def channel(share):
        return low + chroma * xp.minimum(xp.maximum(share, 0.0), 1.0)

    return xp.stack(
        [
            channel(xp.abs(turned - 3) - 1),
            channel(2 - xp.abs(turned - 2)),
            channel(2 - xp.abs(turned - 4)),
        ],
        axis=1,
    )
