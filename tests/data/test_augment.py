"""Each augmentation against NumPy and PIL, in TensorFlow and in JAX."""

import colorsys
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base
from eir_jax.data.augment import crop_planes, recolour
from eir_jax.data.views import JITTER_ORDERS, ViewParameters, coefficients, make_recipe

PLAIN = ViewParameters(
    crop=np.array([0, 0, 32, 32], np.float32),
    jitter=True,
    brightness=np.float32(1),
    contrast=np.float32(1),
    saturation=np.float32(1),
    hue=np.float32(0),
    order=np.int32(0),
    grey=False,
    flip=False,
)
GREY = np.array([0.2989, 0.587, 0.114])


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def view(request):
    """Return view(image, recipe, **parameters): what one image becomes."""
    tensorflow = request.param == "tensorflow"
    xp = pytest.importorskip("tensorflow") if tensorflow else jnp
    as_array = xp.constant if tensorflow else xp.asarray

    def view(image, recipe, **changes):
        one = {
            k: np.asarray(v)[None]
            for k, v in PLAIN._replace(**changes)._asdict().items()
        }
        numbers = coefficients(ViewParameters(**one), np)
        planes = np.float32(image.transpose(2, 0, 1)[None])
        planes = as_array(planes)
        cropped = crop_planes(planes, numbers, recipe.image_size, xp)
        return np.asarray(recolour(cropped, numbers, recipe, xp)[0])

    return view


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


def test_nothing_drawn_changes_nothing(view, image, recipe):
    np.testing.assert_allclose(view(image, recipe), scaled(image), atol=1e-5)


@pytest.mark.parametrize(
    "box", [(0, 0, 32, 32), (3, 7, 20, 11), (0, 20, 15, 12), (31, 31, 1, 1)]
)
@pytest.mark.parametrize("size", [32, 16, 48])
def test_crop_and_resize_equal_pil(view, image, recipe, box, size):
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
def test_colour_factor_equals_numpy(view, image, recipe, name, operation, factor):
    got = view(image, recipe, **{name: np.float32(factor)})
    np.testing.assert_allclose(got, jitter(scaled(image), operation, factor), atol=1e-5)


@pytest.mark.parametrize("hue", [-0.4, -0.1, 0.25, 0.4])
def test_hue_equals_colorsys(view, image, recipe, hue):
    got = view(image, recipe, hue=np.float32(hue))
    np.testing.assert_allclose(got, jitter(scaled(image), 3, hue), atol=1e-5)


@pytest.mark.parametrize("order", range(24))
def test_colour_jitter_follows_its_order(view, image, recipe, order):
    factors = (1.3, 0.7, 1.2, 0.2)
    names = ("brightness", "contrast", "saturation", "hue")
    got = view(
        image,
        recipe,
        order=np.int32(order),
        **dict(zip(names, np.float32(factors), strict=True)),
    )
    want = scaled(image)
    for operation in JITTER_ORDERS[order]:
        want = jitter(want, operation, factors[operation])
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_grey_flip_and_normalisation(view, image, recipe):
    grey = np.repeat(grey_of(scaled(image)), 3, axis=-1)
    np.testing.assert_allclose(view(image, recipe, grey=True), grey, atol=1e-5)
    np.testing.assert_allclose(
        view(image, recipe, flip=True), scaled(image)[:, ::-1], atol=1e-5
    )
    config = base.get_config()
    want = (scaled(image) - config.data.mean) / config.data.std
    np.testing.assert_allclose(view(image, make_recipe(config)), want, atol=1e-4)


def test_jitter_not_drawn_changes_no_colour(view, image, recipe):
    half = dataclasses.replace(recipe, jitter=0.5)
    got = view(image, half, jitter=False, brightness=np.float32(0.6))
    np.testing.assert_allclose(got, scaled(image), atol=1e-5)
