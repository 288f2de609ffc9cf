"""The training views once more, in PyTorch: the recipe of eir_jax/data/views.py.

From the same uniform numbers it makes the same pixels, in the order of the operations
that ours has: crop, resize and flip are two matrix products, colours are worked on as
planes, for all images at once. Nothing here comes from `eir_jax`.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 10  # to place a crop, as torchvision
UNIFORMS = 2 * ATTEMPTS + 10  # random numbers a view
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # of the colour jitter
GREY = (0.2989, 0.587, 0.114)


def make_views(images: Tensor, uniforms: Tensor, recipe: dict, size: int) -> Tensor:
    """Crop, resize, flip, jitter, grey: what the uniform numbers say.

    Args:
      images: uint8 [n, height, width, 3].
      uniforms: float32 [n, 30] in [0, 1).
      recipe: `config.views` and `mean`, `std`.
      size: pixels, of the sides of the views.

    Returns:
      float32 [n, 3, size, size], normalised.
    """
    count, height, width, _ = images.shape
    box, flip, grey, hue, blends = draw_views(uniforms, recipe, height, width)
    top, left, rows, columns = box.unbind(1)
    place = torch.arange(size, device=images.device) + 0.5
    down = _filter(place[None], top, rows, height)
    mirrored = torch.where(flip[:, None], size - place, place)
    across = _filter(mirrored, left, columns, width)
    pixels = images.to(torch.float32).reshape(count, height, width * 3)
    pixels = torch.bmm(down, pixels).reshape(count, size, width, 3)
    pixels = pixels.permute(0, 3, 1, 2).reshape(count, 3 * size, width)
    pixels = torch.bmm(pixels, across.transpose(1, 2)) / 255
    pixels = pixels.reshape(count, 3, size * size)
    if recipe["jitter"] > 0:
        for number in range(6):
            if number == 3 and recipe["hue"] > 0:
                pixels = _turn_hue(pixels, hue[:, None])
            pixels = _blend(pixels, blends[:, number])
    if recipe["grey"] > 0:
        pixels = torch.where(grey[:, None, None], _grey(pixels)[:, None], pixels)
    mean, std = (pixels.new_tensor(recipe[x])[:, None] for x in ("mean", "std"))
    return ((pixels - mean) / std).reshape(count, 3, size, size)


def cutmix(view1: Tensor, other: Tensor, box: Tensor) -> Tensor:
    """Return view1 with each image's box (top, left, bottom, right) from `other`."""
    top, left, bottom, right = (side[:, None, None, None] for side in box.unbind(1))
    y = torch.arange(view1.shape[2], device=box.device)[None, None, :, None]
    x = torch.arange(view1.shape[3], device=box.device)[None, None, None]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return torch.where(inside, other, view1)


def draw_views(
    uniforms: Tensor, recipe: dict, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Turn uniform numbers into what is done to each image.

    Returns:
      Crop [n, 4] (top, left, height, width), flip and grey [n] bool, hue [n] in turns,
      and six blends [n, 6, 3]: three before the hue is turned, three after it.
    """
    jitter, brightness, contrast, saturation, hue, order, grey, flip = uniforms[
        :, 2 * ATTEMPTS + 2 :
    ].unbind(1)
    jittered = jitter < recipe["jitter"]
    factors = torch.stack(
        [
            _factor(brightness, recipe["brightness"]),
            _factor(contrast, recipe["contrast"]),
            _factor(saturation, recipe["saturation"]),
        ],
        dim=1,
    )
    orders = ORDERS.to(uniforms.device)[(order * len(ORDERS)).to(torch.int64)]
    # Where in the order each operation stands, and hue: no loop over the 24 orders.
    place = torch.argsort(orders, dim=1)
    rank = torch.argsort(place[:, :3], dim=1)  # the other three, as they come
    early = torch.gather(place[:, :3], 1, rank) < place[:, HUE, None]
    factor = torch.where(jittered[:, None], torch.gather(factors, 1, rank), 1.0)
    factor = torch.cat(
        [torch.where(early, factor, 1.0), torch.where(early, 1.0, factor)], dim=1
    )
    operation = torch.cat([rank, rank], dim=1)
    blends = torch.stack(
        [
            factor,
            (1 - factor) * (operation == CONTRAST),
            (1 - factor) * (operation == SATURATION),
        ],
        dim=2,
    )
    turns = torch.where(jittered, (2 * hue - 1) * recipe["hue"], 0.0)
    box = _draw_crop(uniforms, recipe, height, width)
    return box, flip < recipe["flip"], grey < recipe["grey"], turns, blends


def _draw_crop(uniforms: Tensor, recipe: dict, height: int, width: int) -> Tensor:
    """Return [n, 4] top, left, height, width: the first of ten boxes that fits."""
    n = ATTEMPTS
    low_area, high_area = recipe["crop_area"]
    low, high = recipe["crop_aspect"]
    area = (low_area + (high_area - low_area) * uniforms[:, :n]) * (height * width)
    log_aspect = math.log(low) + math.log(high / low) * uniforms[:, n : 2 * n]
    widths = torch.round(torch.sqrt(area * torch.exp(log_aspect)))
    heights = torch.round(torch.sqrt(area * torch.exp(-log_aspect)))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = torch.argmax(fits.to(torch.int32), dim=1, keepdim=True)
    found = torch.gather(fits, 1, first)[:, 0]
    w = torch.gather(widths, 1, first)[:, 0]
    h = torch.gather(heights, 1, first)[:, 0]
    # None fits: the largest centred box whose aspect is in range, as torchvision.
    w = torch.where(found, w, float(min(width, round(height * high))))
    h = torch.where(found, h, float(min(height, round(width / low))))
    top = torch.where(found, uniforms[:, 2 * n] * (height - h + 1), (height - h) / 2)
    left = torch.where(found, uniforms[:, 2 * n + 1] * (width - w + 1), (width - w) / 2)
    top = torch.minimum(torch.floor(top), height - h)
    left = torch.minimum(torch.floor(left), width - w)
    return torch.stack([top, left, h, w], dim=1)


def _filter(place: Tensor, start: Tensor, length: Tensor, full: int) -> Tensor:
    """Return [n, size, full]: Pillow's antialiased bilinear filter along one side."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / place.shape[1]
    centre = start + place[:, :, None] * scale
    pixel = torch.arange(full, device=place.device) + 0.5
    weight = F.relu(1 - (pixel - centre).abs() / scale.clamp(min=1.0))
    weight = torch.where((pixel > start) & (pixel < start + length), weight, 0.0)
    return weight / weight.sum(2, keepdim=True)


def _factor(uniform: Tensor, strength: float) -> Tensor:
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * uniform


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def _blend(pixels: Tensor, blend: Tensor) -> Tensor:
    """Return image * a + mean of the grey image * b + grey image * c, in [0, 1]."""
    a, b, c = blend[:, :, None].unbind(1)
    grey = _grey(pixels)
    added = grey.mean(1, keepdim=True) * b + grey * c
    return (pixels * a[:, None] + added[:, None]).clamp(0, 1)


def _turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue, in HSV, by `turns` [n, 1]; as colorsys."""
    red, green, blue = pixels.unbind(1)
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - low
    scale = 1 / torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(
        high == red,
        (green - blue) * scale,
        torch.where(high == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    turned = sixths + 6 * turns
    turned = turned - 6 * torch.floor(turned / 6)
    shares = (
        (turned - 3).abs() - 1,
        2 - (turned - 2).abs(),
        2 - (turned - 4).abs(),
    )
    return torch.stack([low + chroma * share.clamp(0, 1) for share in shares], dim=1)
