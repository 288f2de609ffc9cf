"""The numbers a view is made of: distributions, and JAX's own to the bit."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import base, digits
from eir_jax.data import augment_device
from eir_jax.data.order import draw_uniforms
from eir_jax.data.views import (
    NUM_UNIFORMS,
    coefficients,
    drawn_views,
    make_recipe,
    recipe_of,
    view_parameters,
)
from eir_jax.objectives.systems import make_objective

INDEX = np.arange(4000, dtype=np.int32)


@pytest.fixture(scope="module")
def recipe():
    return make_recipe(base.get_config())


@pytest.fixture(scope="module", params=["numpy", "jax"])
def drawn(request, recipe):
    """Return the parameters of 4,000 views of a 32x32 image, by either pipeline."""
    if request.param == "numpy":
        uniforms = draw_uniforms(0, 0, INDEX, 0, NUM_UNIFORMS)
        return view_parameters(uniforms, recipe, 32, 32, np)
    epoch = jnp.full(INDEX.shape, 7)
    uniforms = augment_device.draw_uniforms(1, epoch, INDEX, 1, NUM_UNIFORMS)
    found = view_parameters(uniforms, recipe, 32, 32, jnp)
    return type(found)(*map(np.asarray, found))


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
@pytest.mark.parametrize("view", [0, 1])
def test_numbers_are_jaxs_to_the_bit(seed, view):
    index = np.array([0, 1, 49_999, 2**31 - 1], np.int32)
    for epoch in (0, 199):
        ours = draw_uniforms(seed, epoch, index, view, NUM_UNIFORMS)
        jaxs = augment_device.draw_uniforms(
            seed, jnp.full(4, epoch), index, view, NUM_UNIFORMS
        )
        np.testing.assert_array_equal(ours, jaxs)
        assert (ours >= 0).all() and (ours < 1).all()


def test_numbers_differ_by_seed_epoch_index_and_view():
    rows = [
        draw_uniforms(seed, epoch, np.arange(5, dtype=np.int32), view, 4)
        for seed in range(3)
        for epoch in range(3)
        for view in range(2)
    ]
    assert len(np.unique(np.concatenate(rows), axis=0)) == 90


def test_both_libraries_make_the_same_parameters(recipe):
    uniforms = draw_uniforms(0, 0, INDEX, 0, NUM_UNIFORMS)
    numpys = coefficients(view_parameters(uniforms, recipe, 32, 32, np), np)
    jaxs = coefficients(
        view_parameters(jnp.asarray(uniforms), recipe, 32, 32, jnp), jnp
    )
    same = (np.abs(numpys - jaxs) <= 1e-6).all(axis=1)
    assert same.mean() >= 0.999  # a side that ends in .5 may round either way


def test_crops_are_distributed_as_torchvisions(drawn, recipe):
    """Against torchvision's loop, written out in NumPy, by two-sample tests."""
    rng = np.random.default_rng(0)
    boxes = []
    while len(boxes) < 4000:
        area = 32 * 32 * rng.uniform(*recipe.crop_area)
        aspect = np.exp(rng.uniform(*np.log(recipe.crop_aspect)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= 32 and 0 < h <= 32:
            top, left = rng.integers(0, 32 - h + 1), rng.integers(0, 32 - w + 1)
            boxes.append((top, left, h, w))
    boxes = np.array(boxes)
    top, left, h, w = drawn.crop.T
    assert (h >= 1).all() and (top >= 0).all() and (top + h <= 32).all()
    assert (w >= 1).all() and (left >= 0).all() and (left + w <= 32).all()
    for got, want in (
        (h * w, boxes[:, 2] * boxes[:, 3]),
        (w / h, boxes[:, 3] / boxes[:, 2]),
        (top, boxes[:, 0]),
        (left, boxes[:, 1]),
    ):
        assert stats.ks_2samp(got, want).pvalue > 0.001


def test_colours_flips_and_grey_have_their_rates(drawn, recipe):
    for values in (drawn.brightness, drawn.contrast, drawn.saturation):
        assert stats.kstest(values, stats.uniform(0.6, 0.8).cdf).pvalue > 0.001
    assert stats.kstest(drawn.hue, stats.uniform(-0.4, 0.8).cdf).pvalue > 0.001
    assert stats.chisquare(np.bincount(drawn.order.astype(int))).pvalue > 0.001
    assert len(set(drawn.order)) == 24
    for values, rate in ((drawn.flip, 0.5), (drawn.grey, 0.2), (drawn.jitter, 1.0)):
        assert stats.binomtest(int(values.sum()), 4000, rate).pvalue > 0.001


def test_a_crop_that_never_fits_is_the_central_one(recipe):
    """A strip 64 high and 8 wide falls back as torchvision does: to aspect 3/4."""
    wide = dataclasses.replace(recipe, crop_area=(1.0, 1.0))
    uniforms = draw_uniforms(0, 0, INDEX[:5], 0, NUM_UNIFORMS)
    crop = view_parameters(uniforms, wide, 64, 8, np).crop
    np.testing.assert_array_equal(crop, [[26, 0, 11, 8]] * 5)


def test_each_image_has_its_own_size(recipe):
    uniforms = draw_uniforms(0, 0, INDEX[:2], 0, NUM_UNIFORMS)
    both = view_parameters(
        uniforms, recipe, np.array([300, 20]), np.array([400, 500]), np
    )
    for row, (height, width) in enumerate([(300, 400), (20, 500)]):
        one = view_parameters(uniforms[row : row + 1], recipe, height, width, np)
        for a, b in zip(one, both, strict=True):
            np.testing.assert_array_equal(a[0], b[row])


def test_crops_stay_inside_for_the_largest_numbers(recipe):
    """Just below 1, the product with the free pixels can round up to all of them."""
    below = np.full((1, NUM_UNIFORMS), np.nextafter(np.float32(1), np.float32(0)))
    below[:, :10] = 0
    for side in (32, 224, 4000, 20_000):
        top, left, h, w = view_parameters(below, recipe, side, side, np).crop[0]
        assert top + h <= side and left + w <= side


@pytest.mark.parametrize(
    ("changes", "views"),
    [
        ({}, 2),
        ({"objective": "ir"}, 2),
        ({"objective": "ir", "lambda_intra": 0.0}, 2),
        ({"objective": "ir", "lambda_intra": 0.0, "lambda_inter": 0.0}, 1),
    ],
)
def test_views_that_the_terms_look_at(changes, views):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    assert len(drawn_views(make_objective(config, 1).slots)) == views


def test_recipe_of_digits_leaves_colour_and_sides_alone():
    recipe = make_recipe(digits.get_config())
    uniforms = draw_uniforms(0, 0, INDEX[:200], 0, NUM_UNIFORMS)
    found = view_parameters(uniforms, recipe, 16, 16, np)
    assert not found.flip.any() and not found.grey.any() and not found.jitter.any()
    assert (found.crop[:, 2] * found.crop[:, 3] >= 0.45 * 256).all()
    numbers = coefficients(found, np)
    np.testing.assert_array_equal(numbers[:, 4:7], 0)
    np.testing.assert_array_equal(
        numbers[:, 7:].reshape(-1, 3), np.broadcast_to([1, 0, 0], (1200, 3))
    )


def test_a_weak_view_keeps_its_colours(recipe):
    """No jitter, no grey; crop and flip as drawn."""
    uniforms = np.random.default_rng(0).uniform(size=(50, NUM_UNIFORMS))
    uniforms = uniforms.astype(np.float32)
    strong, weak = (
        view_parameters(uniforms, recipe_of(name, recipe), 32, 32, np)
        for name in ("view2", "weak")
    )
    assert strong.jitter.all() and strong.grey.any()
    assert not weak.jitter.any() and not weak.grey.any()
    np.testing.assert_array_equal(strong.crop, weak.crop)
    np.testing.assert_array_equal(strong.flip, weak.flip)
