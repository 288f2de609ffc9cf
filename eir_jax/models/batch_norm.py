"""Batch norm, and the ReLU behind it, of several images of an instance at once.

On a GPU, whose memory is what a step waits for, by rules of our own, which read and
write a feature map as seldom as XLA can there: forwards it is read for the sums, read
and written; backwards it and its gradient are read for the sums, and read again to
write the gradient of what came in. A TPU's compiler makes all of it part of the
convolutions, if it is left alone, and on a CPU XLA's own rules are as quick.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

Passes = tuple[tuple[int, ...], ...]
"""The slots that are normalised together, e.g. ((0, 1), (2,)): views, then mixed."""


class BatchNorm(nn.Module):
    """Normalise over batch and space, in groups of instances and passes of slots.

    Then ReLU, where `relu` is set.

    The statistics equal those of one forward pass for each of `passes`, with the
    instances split over `groups` devices. Running averages move once a pass, by the
    mean over its groups, with the unbiased variance (PyTorch's convention). Computed in
    the parameters' type, whatever that of `x` is, which the result has again.
    """

    by_hand: bool
    groups: int = 1
    passes: Passes = ((0,),)
    momentum: float = 0.9  # PyTorch's 0.1
    epsilon: float = 1e-5
    relu: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "rows height width channel"], train: bool
    ) -> Float[Array, "rows height width channel"]:
        """Normalise `x`: by its own statistics in training, else by running averages.

        `rows` is batch * slots; `groups` must divide the batch.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            offset = bias - running_mean.value * factor
            normalised = x * _channelwise(factor) + _channelwise(offset)
            return _rectified(normalised, self.relu).astype(x.dtype)

        slots = sum(map(len, self.passes))
        slabs = x.reshape(self.groups, -1, slots, *x.shape[1:])
        how = self.passes, self.epsilon, self.relu, self.by_hand
        normalised, mean, variance = normalize(slabs, scale, bias, *how)
        if not self.is_initializing():
            count = slabs.size // (self.groups * slots * channels)
            keep = self.momentum
            for members in self.passes:
                number = count * len(members)
                pass_mean, pass_var = (y[:, members[0]] for y in (mean, variance))
                unbiased = pass_var.mean(0) * (number / max(number - 1, 1))
                running_mean.value = keep * running_mean.value + (
                    1 - keep
                ) * pass_mean.mean(0)
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return normalised.reshape(x.shape)


Slabs = Float[Array, "group instance slot height width channel"]
Moments = Float[Array, "group slot channel"]


def normalize(
    x: Slabs,
    scale: Float[Array, " channel"],
    bias: Float[Array, " channel"],
    passes: Passes,
    epsilon: float,
    relu: bool = False,
    by_hand: bool = False,
) -> tuple[Slabs, Moments, Moments]:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias, and both moments.

    Each slot has the moments of its pass, within its group. With `relu` what is
    negative is 0. No gradient is meant to pass through the moments that are returned.

    The gradient is by XLA's rule, or `by_hand` (Ioffe and Szegedy, 2015): two sums
    forward and two backward are all that is summed over batch and space, and ReLU's
    gradient is found from `x` anew, in the sums as in what follows them, so that
    neither it nor a mask is ever written.
    """
    how = passes, epsilon, relu
    if by_hand:
        return _by_hand(x, scale, bias, *how)
    x32 = x.astype(scale.dtype)
    sums = [y.sum((1, 3, 4)) for y in (x32, jnp.square(x32))]
    return _normalized(x, scale, bias, sums, *how)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _by_hand(x, scale, bias, passes, epsilon, relu):
    return _forward(x, scale, bias, passes, epsilon, relu)[0]


def _forward(x, scale, bias, *how):
    x32 = x.astype(scale.dtype)
    sums, _ = _sums(x32, jnp.square(x32))
    return _normalized(x, scale, bias, sums, *how)


def _normalized(x, scale, bias, sums, passes, epsilon, relu):
    """Return what `normalize` does, and what its gradient is found from."""
    mean, square = (_shared(y * (y.size / x.size), passes) for y in sums)
    variance = jnp.maximum(square - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = _affine(x.astype(scale.dtype), scale, bias, mean, inverse)
    y = _rectified(y, relu).astype(x.dtype)
    return (y, mean, variance), (x, scale, bias, mean, inverse)


def _backward(passes, epsilon, relu, residuals, cotangents):
    x, scale, bias, mean, inverse = residuals
    # Behind a barrier nothing is kept of the forward pass but `x`.
    x = jax.lax.optimization_barrier(x)

    def read(x, dy):
        x32, dy = (y.astype(scale.dtype) for y in (x, dy))
        if relu:
            dy = jnp.where(_affine(x32, scale, bias, mean, inverse) > 0, dy, 0)
        return x32, dy

    # Means of dy, and of dy times the normalised x.
    x32, dy = read(x, cotangents[0])
    (total, along), kept = _sums(dy, dy * x32, (x, cotangents[0]))
    number = x.size // total.size
    total, along = total / number, along / number
    along = (along - mean * total) * inverse
    dscale, dbias = number * along.sum((0, 1)), number * total.sum((0, 1))
    factor = scale[None, None] * inverse
    by_x = -factor * inverse * _shared(along, passes)
    alone = -factor * _shared(total, passes) - by_x * mean
    x32, dy = read(*kept)
    dx = dy * _wide(factor) + x32 * _wide(by_x) + _wide(alone)
    return dx.astype(x.dtype), dscale, dbias


_by_hand.defvjp(_forward, _backward)


@jax.custom_vjp
def kept_relu(x: Array) -> Array:
    """Return max(x, 0). Its gradient looks at the result, which is kept for it.

    That is written for the next convolution; XLA would find `x` anew for the gradient,
    by reading all that it was made of.
    """
    return _kept_relu(x)[0]


def _kept_relu(x):
    y = jax.lax.optimization_barrier(nn.relu(x))
    return y, y


kept_relu.defvjp(_kept_relu, lambda y, dy: (jnp.where(y > 0, dy, 0),))


def _sums(a: Slabs, b: Slabs, kept: tuple[Slabs, ...] = ()):
    """Return the sums of `a` and `b` over batch and space, and `kept`.

    First over space, then both over the batch at once. Behind the first barrier `kept`
    is read anew: nothing that was found of it for the sums is written for what follows
    them. The second keeps XLA from summing large arrays once more for what is made of
    these sums.
    """
    parts = [y.sum((3, 4)) for y in (a, b)]
    parts, kept = jax.lax.optimization_barrier((parts, kept))
    sums = jax.lax.optimization_barrier(jnp.stack(parts, 3).sum(1))
    return (sums[:, :, 0], sums[:, :, 1]), kept


def _affine(x32, scale, bias, mean, inverse):
    factor = scale[None, None] * inverse
    return x32 * _wide(factor) + _wide(bias[None, None] - mean * factor)


def _rectified(x, relu: bool):
    return nn.relu(x) if relu else x


def _shared(value: Moments, passes: Passes) -> Moments:
    """Return, at each slot, the mean over its pass."""
    if len(passes) == value.shape[1]:  # each its own
        return value
    number = {slot: n for n, members in enumerate(passes) for slot in members}
    numbers = np.array([number[slot] for slot in range(len(number))])
    together = numbers[:, None] == numbers[None]
    sizes = together.sum(1).astype(value.dtype)[None, :, None]
    return jnp.where(together[None, :, :, None], value[:, None], 0).sum(2) / sizes


def _wide(value: Moments) -> Float[Array, "group 1 slot 1 1 channel"]:
    return value[:, None, :, None, None]


def _channelwise(value: Float[Array, " channel"]) -> Float[Array, "1 1 1 channel"]:
    return value[None, None, None]
