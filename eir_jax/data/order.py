"""What happens when: pure functions of (seed, epoch) and (seed, step), in NumPy."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt32

# Purposes: each has random numbers of its own.
ORDER, INTERPOLATION, VIEWS, SHUFFLE, NOISE, CLUSTERS, HEADS = range(7)
REPEATED = 2**16  # see `showings`: more than there are epochs


class Interpolation(NamedTuple):
    """How a batch is mixed (Eq. 7)."""

    partner: Int32[np.ndarray, " batch"]
    """A permutation: image i is mixed with image partner[i]."""
    ratio: Float32[np.ndarray, " batch"]
    """r: the share of image i, in [0, 1]."""
    box: Int32[np.ndarray, "batch 4"]
    """Cutmix: top, left, bottom, right of the part that is the partner's; else 0."""


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Return the whole batches in an epoch; the last short one is dropped."""
    return num_examples // batch_size


def epoch_order(seed: int, epoch: int, num_examples: int) -> Int32[np.ndarray, " n"]:
    """Return the instances in the order of an epoch, a permutation of all."""
    return _generator(ORDER, seed, epoch).permutation(num_examples).astype(np.int32)


def uniform_order(
    seed: int, epoch: int, group: Int32[np.ndarray, " n"], count: int
) -> Int32[np.ndarray, " count"]:
    """Return instances drawn uniformly over their groups (Caron et al., 2018).

    Each group that has an instance is given as many places as any other, or one more or
    less. A group of fewer instances than places is drawn from with replacement, of a
    larger one none comes twice.

    Args:
      seed: of the run.
      epoch: from 0 on.
      group: a number for each instance.
      count: places of the epoch.
    """
    generator = _generator(ORDER, seed, epoch)
    by_group = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[by_group])) + 1
    groups = np.split(by_group, starts)
    fewest, more = divmod(count, len(groups))
    places = fewest + (generator.permutation(len(groups)) < more)
    drawn = [
        generator.choice(members, number, replace=len(members) < number)
        for members, number in zip(groups, places, strict=True)
    ]
    return generator.permutation(np.concatenate(drawn)).astype(np.int32)


def showings(order: Int32[np.ndarray, " n"], epoch: int) -> Int32[np.ndarray, " n"]:
    """Return the numbers by which views are drawn at each place of an epoch's order.

    It is the epoch, where an instance comes first; later it is raised by `REPEATED`
    each time, so that none is shown the same way twice.
    """
    by_instance = np.argsort(order, kind="stable")
    ordered = order[by_instance]
    before = np.empty(len(order), np.int64)
    before[by_instance] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return (epoch + before % (2**31 // REPEATED) * REPEATED).astype(np.int32)


def draw_interpolation(
    seed: int,
    step: int,
    batch_size: int,
    image_size: int,
    *,
    kind: str = "cutmix",
    alpha: float = 1.0,
    per_sample: bool = False,
) -> Interpolation:
    """Draw partners and ratios of a step; ratio ~ Beta(alpha, alpha).

    Cutmix takes a box of area 1 - ratio around a uniform centre, clipped to the image,
    and the ratio anew from what is left of it (Yun et al., 2019, and their code).

    Args:
      seed: of the run.
      step: from 0 on.
      batch_size: images a batch.
      image_size: pixels, height and width.
      kind: 'cutmix' or 'mixup'.
      alpha: > 0.
      per_sample: one ratio and box an image instead of one a batch.
    """
    generator = _generator(INTERPOLATION, seed, step)
    partner = generator.permutation(batch_size).astype(np.int32)
    count = batch_size if per_sample else 1
    ratio = generator.beta(alpha, alpha, count)
    box = np.zeros((count, 4), np.int32)
    if kind == "cutmix":
        side = np.floor(image_size * np.sqrt(1 - ratio)).astype(np.int64)[:, None]
        centre = generator.integers(0, image_size, (count, 2))
        corners = np.concatenate([centre - side // 2, centre + side // 2], axis=1)
        box = np.clip(corners, 0, image_size).astype(np.int32)
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        ratio = 1 - area / image_size**2
    shape = (batch_size,)
    return Interpolation(
        partner,
        np.broadcast_to(ratio.astype(np.float32), shape),
        np.broadcast_to(box, (*shape, 4)),
    )


def draw_uniforms(
    seed: int,
    epoch: int | Int32[np.ndarray, " n"],
    index: Int32[np.ndarray, " n"],
    view: int,
    count: int,
) -> Float32[np.ndarray, "n count"]:
    """Draw the random numbers of views, each row by (seed, epoch, index, view) alone.

    They are, to the bit, those of `augment_device.draw_uniforms`, which jax.random
    makes: `uniform(fold_in(... fold_in(key(seed), VIEWS) ..., view), (count,))`.

    Args:
      seed: of the run, in [0, 2**31).
      epoch: from 0 on; one for all, or as `showings` gives it.
      index: of the instances.
      view: 0 or 1.
      count: numbers a view.
    """
    none = np.zeros(1, np.uint32)
    key = (none, np.full(1, seed, np.uint32))
    for number in (VIEWS, epoch, index, view):
        key = _threefry(key, none, np.atleast_1d(number).astype(np.uint32))
    columns = np.arange(count, dtype=np.uint32)[None]
    high, low = _threefry((key[0][:, None], key[1][:, None]), none[None], columns)
    mantissa = (high ^ low) >> np.uint32(9) | np.uint32(0x3F800000)  # of [1, 2)
    return mantissa.view(np.float32) - np.float32(1)


def _threefry(
    key: tuple[np.ndarray, np.ndarray],
    high: UInt32[np.ndarray, "..."],
    low: UInt32[np.ndarray, "..."],
) -> tuple[UInt32[np.ndarray, "..."], UInt32[np.ndarray, "..."]]:
    """Return Threefry-2x32 of 20 rounds (Salmon et al., 2011) of two 32-bit words."""
    keys = (*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = np.broadcast_arrays(high + keys[0], low + keys[1])
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
            y = y ^ x
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _generator(purpose: int, seed: int, number: int) -> np.random.Generator:
    """Return a generator of its own for each (purpose, seed, number)."""
    key = np.random.SeedSequence([purpose, seed, number])
    return np.random.Generator(np.random.Philox(key))
