"""CMC: its colours, its loss, and which bank each tower reads and writes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small import small_config

from eir_jax.models.colour import rgb_to_lab
from eir_jax.models.encoder import Encoder, EncoderOutput, make_encoder
from eir_jax.objectives.systems import make_objective

NUM, BATCH, DIM = 4, 3, 5


def test_lab_is_the_published():
    """The corners of sRGB in CIE L*a*b*, D65, to the tables' digits; grey has none."""
    known = {
        (0, 0, 0): (0, 0, 0),
        (1, 1, 1): (100, 0, 0),
        (1, 0, 0): (53.24, 80.09, 67.20),
        (0, 1, 0): (87.73, -86.18, 83.18),
        (0, 0, 1): (32.30, 79.19, -107.86),
        (1, 1, 0): (97.14, -21.55, 94.48),
        (0, 1, 1): (91.11, -48.09, -14.13),
        (1, 0, 1): (60.32, 98.23, -60.82),
        (0.5, 0.5, 0.5): (53.39, 0, 0),
    }
    found = rgb_to_lab(jnp.array(list(known), jnp.float32))
    np.testing.assert_allclose(found, np.array(list(known.values())), atol=0.02)
    rgb = np.random.default_rng(0).uniform(size=(50, 3))
    np.testing.assert_allclose(
        rgb_to_lab(jnp.asarray(rgb, jnp.float32)), lab(rgb), atol=1e-3
    )


def lab(rgb):
    """CIE L*a*b* of sRGB in float64, by IEC 61966-2-1 and CIE 15."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169]]
    to_xyz.append([0.019334, 0.119193, 0.950227])
    t = linear @ np.transpose(to_xyz) / [0.95047, 1, 1.08883]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def test_towers_are_given_lab_as_the_release_normalises_it():
    """L in [0, 100] to [-1, 1]; a and b by their ranges in sRGB, [-86.183, 98.233]
    and [-107.857, 94.478], as its data loader has them."""
    given = {}
    config = small_config(**{"model.towers": "lab", "model.width": 8})
    encoder = make_encoder(config, exact=True)
    rgb = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    mean, std = np.array(config.data.mean), np.array(config.data.std)
    images = jnp.asarray((rgb - mean) / std, jnp.float32)

    def see(next_call, args, kwargs, context):
        if type(context.module) is Encoder and context.method_name == "__call__":
            given[context.module.name] = args[0]
        return next_call(*args, **kwargs)

    with nn.intercept_methods(see):
        encoder.init(jax.random.key(0), images)
    wanted = lab(rgb.astype(float)) - [50, 6.025, -6.6895]
    wanted /= [50, 92.208, 101.1675]
    found = np.concatenate([given["lightness"], given["colour"]], axis=-1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_equal_rows_have_the_closed_form():
    """Each tower's loss is log N."""
    row = np.zeros((1, DIM))
    row[0, 0] = 1
    banks, halves = [np.repeat(row, NUM, 0)] * 2, [np.repeat(row, BATCH, 0)] * 2
    terms, _, _ = terms_and_update(banks, halves)
    assert terms["loss_lightness"] == pytest.approx(np.log(NUM), rel=1e-5)
    assert terms["loss_colour"] == pytest.approx(np.log(NUM), rel=1e-5)


@pytest.fixture(scope="module")
def case():
    """Return two banks, and a batch's two halves, in float64."""
    rng = np.random.default_rng(0)
    unit = lambda n: reference.unit(rng.normal(size=(n, DIM)))  # noqa: E731
    return unit(NUM), unit(NUM), unit(BATCH), unit(BATCH)


def terms_and_update(banks, halves):
    config = small_config(objective="cmc", **{"model.embedding_dim": 2 * DIM})
    objective = make_objective(config, NUM)
    names = ("lightness", "colour")
    memory = {
        name: jnp.zeros((512, DIM)).at[:NUM].set(bank)
        for name, bank in zip(names, banks, strict=True)
    }
    batch = {"index": jnp.array([2, 0, 3])}

    def outputs(embedding):
        return {"view1": EncoderOutput(embedding, embedding)}

    def loss(embedding):
        terms = objective.terms(outputs(embedding), memory, batch)
        return sum(terms.values()), terms

    embedding = jnp.asarray(np.concatenate(halves, axis=1) * 0.5**0.5, jnp.float32)
    (_, terms), grad = jax.value_and_grad(loss, has_aux=True)(embedding)
    written = objective.update(memory, outputs(embedding), batch, {}, jnp.array(True))
    return terms, grad, written[0]


def test_each_half_looks_for_its_row_in_the_others_bank(case):
    lightness, colour, v_l, v_ab = case
    terms, grad, written = terms_and_update((lightness, colour), (v_l, v_ab))
    index = np.array([2, 0, 3])

    def wanted(v, bank):
        return reference.instance_losses(bank, v, v, index, 0.1)["ir"]

    assert terms["loss_lightness"] == pytest.approx(wanted(v_l, colour), rel=1e-5)
    assert terms["loss_colour"] == pytest.approx(wanted(v_ab, lightness), rel=1e-5)

    def total(embedding):
        halves = (reference.unit(x) for x in np.split(embedding, 2, axis=1))
        return sum(map(wanted, halves, (colour, lightness)))

    want = reference.gradient(total, np.concatenate([v_l, v_ab], axis=1) * 0.5**0.5)
    np.testing.assert_allclose(grad, want, atol=1e-5 * np.abs(want).max())
    for name, bank, view in (("lightness", lightness, v_l), ("colour", colour, v_ab)):
        rows = reference.unit(0.5 * bank[index] + 0.5 * view)
        np.testing.assert_allclose(written[name][index], rows, atol=1e-6)
        np.testing.assert_allclose(written[name][1], bank[1], atol=1e-6)


def test_swapping_the_halves_swaps_the_terms(case):
    lightness, colour, v_l, v_ab = case
    one, _, _ = terms_and_update((lightness, colour), (v_l, v_ab))
    other, _, _ = terms_and_update((colour, lightness), (v_ab, v_l))
    assert one["loss_lightness"] == other["loss_colour"]
    assert one["loss_colour"] == other["loss_lightness"]


def test_towers_see_lightness_and_colours_alone():
    """Of half the width each; grey images of one shade differ in no colour."""
    config = small_config(**{"model.towers": "lab", "model.width": 8})
    encoder = make_encoder(config, exact=True)
    shade = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    images = jnp.broadcast_to(shade, (2, 8, 8, 3))
    std, mean = jnp.array(config.data.std), jnp.array(config.data.mean)
    images = (images - mean[None, None, None]) / std[None, None, None]
    variables = encoder.init(jax.random.key(0), images)
    kernels = {
        k: v["backbone"]["conv"]["kernel"] for k, v in variables["params"].items()
    }
    assert kernels["lightness"].shape == (3, 3, 1, 4)
    assert kernels["colour"].shape == (3, 3, 2, 4)
    output = encoder.apply(variables, images)
    assert output.embedding.shape == (2, 16) and output.feature.shape == (2, 16)
    np.testing.assert_allclose(jnp.linalg.norm(output.embedding, axis=1), 1, rtol=1e-5)
    first, second = output.embedding
    np.testing.assert_allclose(first[8:], second[8:], atol=1e-3)
    assert jnp.abs(first[:8] - second[:8]).max() > 1e-3
