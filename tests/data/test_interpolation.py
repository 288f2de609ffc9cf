"""Mixup and cutmix against loops over pixels, in NumPy, JAX and TensorFlow."""

import jax.numpy as jnp
import numpy as np
import pytest

from eir_jax.data.interpolation import cutmix, mixup
from eir_jax.data.order import draw_interpolation


@pytest.fixture(params=["numpy", "jax", "tensorflow"])
def library(request):
    if request.param == "tensorflow":
        return pytest.importorskip("tensorflow")
    return {"numpy": np, "jax": jnp}[request.param]


def images(seed):
    return np.random.default_rng(seed).normal(size=(6, 8, 8, 3)).astype(np.float32)


def to(library, x):
    if library.__name__ == "tensorflow":
        return library.constant(x)
    return library.asarray(x)


def test_mixup(library):
    a, b = images(0), images(1)
    ratio = np.linspace(0, 1, 6).astype(np.float32)
    mixed = np.asarray(mixup(*(to(library, x) for x in (a, b, ratio))))
    for i, r in enumerate(ratio):
        np.testing.assert_allclose(mixed[i], r * a[i] + (1 - r) * b[i], atol=1e-6)
    np.testing.assert_array_equal(mixed[0], b[0])  # ratio 0: all of the partner
    np.testing.assert_array_equal(mixed[-1], a[-1])


def test_cutmix(library):
    a, b = images(0), images(1)
    box = draw_interpolation(0, 0, 6, 8, per_sample=True).box.copy()
    box[0] = 0, 0, 0, 0
    box[1] = 0, 0, 8, 8
    mixed = np.asarray(cutmix(*(to(library, x) for x in (a, b, box)), library))
    for i, (top, left, bottom, right) in enumerate(box):
        for y in range(8):
            for x in range(8):
                inside = top <= y < bottom and left <= x < right
                want = (b if inside else a)[i, y, x]
                np.testing.assert_array_equal(mixed[i, y, x], want)
