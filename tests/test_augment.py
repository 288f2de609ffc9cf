"""Each augmentation against NumPy and PIL; the random numbers' distributions."""

import colorsys
import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from configs import base, digits
from eir_jax.data.augment import (
    JITTER_ORDERS,
    NUM_UNIFORMS,
    ViewParameters,
    apply_view,
    draw_view,
    make_recipe,
    view_parameters,
    view_seed,
)

tf = pytest.importorskip("tensorflow")

PLAIN = ViewParameters(
    crop=np.array([0, 0, 32, 32], np.float32),
    jitter=True,
    brightness=np.float32(1),
    contrast=np.float32(1),
    saturation=np.float32(1),
    hue=np.float32(0),
    order=np.float32(0),
    grey=False,
    flip=False,
)
GREY = np.array([0.2989, 0.587, 0.114])


@pytest.fixture(scope="module")
def recipe():
    """Return the CIFAR recipe without normalisation, so that pixels can be compared."""
    recipe = make_recipe(base.get_config())
    return dataclasses.replace(recipe, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def image():
    """Return a smooth colourful image with some noise, uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((32, 32), Image.BICUBIC), float)
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def view(image, recipe, **changes):
    return apply_view(tf.constant(image), PLAIN._replace(**changes), recipe).numpy()


def scaled(image):
    return image.astype(np.float64) / 255


def grey_of(x):
    return (x * GREY).sum(-1, keepdims=True)


def jitter(x, operation, factor):
    """Return torchvision's colour operations, in NumPy."""
    if operation == 0:
        x = x * factor
    elif operation == 1:
        x = x * factor + grey_of(x).mean() * (1 - factor)
    elif operation == 2:
        x = x * factor + grey_of(x) * (1 - factor)
    else:
        turned = np.array(
            [
                colorsys.hsv_to_rgb((h + factor) % 1, s, v)
                for h, s, v in (colorsys.rgb_to_hsv(*p) for p in x.reshape(-1, 3))
            ]
        )
        x = turned.reshape(x.shape)
    return np.clip(x, 0, 1)


def test_nothing_drawn_changes_nothing(image, recipe):
    np.testing.assert_allclose(view(image, recipe), scaled(image), atol=1e-5)


@pytest.mark.parametrize(
    "box", [(0, 0, 32, 32), (3, 7, 20, 11), (0, 20, 15, 12), (31, 31, 1, 1)]
)
@pytest.mark.parametrize("size", [32, 16, 48])
def test_crop_and_resize_equal_pil(image, recipe, box, size):
    top, left, height, width = box
    got = view(
        image,
        dataclasses.replace(recipe, image_size=size),
        crop=np.array(box, np.float32),
    )
    pil = Image.fromarray(image[top : top + height, left : left + width])
    want = np.asarray(pil.resize((size, size), Image.BILINEAR))
    assert np.abs(got * 255 - want).max() <= 1.01  # PIL rounds, twice


@pytest.mark.parametrize(
    ("name", "operation"), [("brightness", 0), ("contrast", 1), ("saturation", 2)]
)
@pytest.mark.parametrize("factor", [0.6, 0.9, 1.4])
def test_colour_factor_equals_numpy(image, recipe, name, operation, factor):
    got = view(image, recipe, **{name: np.float32(factor)})
    np.testing.assert_allclose(got, jitter(scaled(image), operation, factor), atol=1e-5)


@pytest.mark.parametrize("hue", [-0.4, -0.1, 0.25, 0.4])
def test_hue_equals_colorsys(image, recipe, hue):
    got = view(image, recipe, hue=np.float32(hue))
    np.testing.assert_allclose(got, jitter(scaled(image), 3, hue), atol=1e-5)


@pytest.mark.parametrize("order", range(24))
def test_colour_jitter_follows_its_order(image, recipe, order):
    factors = (1.3, 0.7, 1.2, 0.2)
    names = ("brightness", "contrast", "saturation", "hue")
    got = view(
        image,
        recipe,
        order=np.float32(order),
        **dict(zip(names, np.float32(factors), strict=True)),
    )
    want = scaled(image)
    for operation in JITTER_ORDERS[order]:
        want = jitter(want, operation, factors[operation])
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_grey_flip_and_normalisation(image, recipe):
    grey = np.repeat(grey_of(scaled(image)), 3, axis=-1)
    np.testing.assert_allclose(view(image, recipe, grey=True), grey, atol=1e-5)
    np.testing.assert_allclose(
        view(image, recipe, flip=True), scaled(image)[:, ::-1], atol=1e-5
    )
    config = base.get_config()
    want = (scaled(image) - config.data.mean) / config.data.std
    np.testing.assert_allclose(view(image, make_recipe(config)), want, atol=1e-4)


def test_jitter_not_drawn_changes_no_colour(image, recipe):
    half = dataclasses.replace(recipe, jitter=0.5)
    got = view(image, half, jitter=tf.constant(False), brightness=np.float32(0.6))
    np.testing.assert_allclose(got, scaled(image), atol=1e-5)


@pytest.fixture(scope="module")
def drawn(recipe):
    """Return the parameters of 4,000 views of a 32x32 image."""

    def draw(index):
        seed = view_seed(0, tf.constant(0, tf.int64), index, 0)
        return tuple(tf.cast(p, tf.float32) for p in draw_view(seed, recipe, 32, 32))

    dataset = tf.data.Dataset.range(4000).map(draw).batch(4000)
    (columns,) = dataset.as_numpy_iterator()
    return ViewParameters(*columns)


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
    uniforms = np.random.default_rng(0).uniform(size=NUM_UNIFORMS).astype(np.float32)
    crop = view_parameters(uniforms, wide, np.float32(64), np.float32(8), np).crop
    np.testing.assert_array_equal(crop, [26, 0, 11, 8])


def test_recipe_of_digits_leaves_colour_and_sides_alone():
    recipe = make_recipe(digits.get_config())
    plain = dataclasses.replace(recipe, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    drawn = PLAIN._replace(
        crop=np.array([0, 0, 16, 16], np.float32), brightness=np.float32(0.5)
    )
    for index in range(50):
        seed = view_seed(0, tf.constant(0, tf.int64), tf.constant(index, tf.int64), 0)
        parameters = draw_view(seed, recipe, 16, 16)
        assert not parameters.flip and not parameters.grey and not parameters.jitter
        assert parameters.crop[2] * parameters.crop[3] >= 0.45 * 256
    got = apply_view(tf.constant(image), drawn, plain).numpy()
    np.testing.assert_allclose(got, scaled(image), atol=1e-5)
