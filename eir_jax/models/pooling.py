"""Max-pooling that keeps which pixel won in one byte."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

TAPS = [(row, column) for row in range(3) for column in range(3)]


@jax.custom_vjp
def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n rows columns c"]:
    """Return the maxima of 3x3 windows, stride 2, one pixel of padding.

    As `flax.linen.max_pool` and PyTorch's, also in that the gradient goes to the first
    of equal pixels of a window. XLA's own form carries the place beside each value
    through a reduction of pairs, and finds it anew for the gradient.
    """
    return _pool(x)[0]


def _pool(x):
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows, columns = (-(-side // 2) for side in x.shape[1:3])
    taps = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i, j in TAPS
    ]
    largest = taps[0]
    for tap in taps[1:]:
        largest = jnp.maximum(largest, tap)
    place = jnp.full(largest.shape, len(TAPS), jnp.uint8)
    for number, tap in reversed([*enumerate(taps)]):
        place = jnp.where(tap == largest, jnp.uint8(number), place)
    return largest, place


def _forward(x):
    largest, place = _pool(x)
    return largest, (place, x.shape[1:3])


def _backward(kept, gradient):
    place, sides = kept
    return (_scattered(place, gradient, sides),)


def _scattered(
    place: UInt8[Array, "n rows columns c"],
    gradient: Float[Array, "n rows columns c"],
    sides: tuple[int, int],
) -> Float[Array, "n h w c"]:
    """Add each window's gradient to the pixel that won."""

    def spread(number, tap):
        """Lay the tap's gradients where its pixels are."""
        own = jnp.where(place == number, gradient, 0)
        margins = [
            (at - 1, side - (at - 1) - (2 * windows - 1), 1)
            for at, side, windows in zip(tap, sides, place.shape[1:3], strict=True)
        ]
        return jax.lax.pad(
            own, jnp.zeros((), own.dtype), [(0, 0, 0), *margins, (0, 0, 0)]
        )

    return sum(spread(number, tap) for number, tap in enumerate(TAPS))


max_pool.defvjp(_forward, _backward)
