"""The encoder: size, initialisation, batch norm against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config

from configs import base
from eir_jax.models.encoder import feature_dim, l2_normalize, make_encoder
from eir_jax.models.resnet import BLOCKS


def shapes(config, size):
    encoder = make_encoder(config)
    return jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    )


@pytest.mark.parametrize(
    ("stem", "size", "count"),
    [("small", 32, 11_234_496), ("imagenet", 224, 11_242_176)],
)
def test_parameter_count(stem, size, count):
    config = base.get_config()
    config.model.stem = stem
    params = shapes(config, size)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("stem", "size", "last"),
    [("small", 32, 4), ("small", 96, 12), ("imagenet", 224, 7)],
)
def test_shapes_of_the_paper(stem, size, last):
    config = base.get_config()
    config.model.stem = stem
    encoder = make_encoder(config)

    def run():
        images = jnp.zeros((2, size, size, 3))
        variables = encoder.init(jax.random.key(0), images)
        feature_map = encoder.bind(variables).backbone(images, False)
        return encoder.apply(variables, images), feature_map

    output, feature_map = jax.eval_shape(run)
    assert output.embedding.shape == (2, 128)
    assert output.feature.shape == (2, 512)
    assert feature_map.shape == (2, last, last, 512)


def test_pooled_map_of_the_linear_probe_is_4608_d_at_224():
    config = base.get_config()
    config.model.stem = "imagenet"
    encoder = make_encoder(config)

    def run():
        images = jnp.zeros((2, 224, 224, 3))
        variables = encoder.init(jax.random.key(0), images)
        return encoder.apply(variables, images, pooled_map=True)

    assert jax.eval_shape(run).feature.shape == (2, 4608)


@pytest.fixture(scope="module")
def small():
    config = base.get_config()
    config.model.name, config.model.width = "resnet10", 8
    encoder = make_encoder(config)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    variables = jax.jit(encoder.init)(jax.random.key(0), images)
    return encoder, variables, images


@pytest.mark.parametrize("name", BLOCKS)
def test_feature_is_as_long_as_is_said(name):
    config = base.get_config()
    config.model.name, config.model.width = name, 4
    head = shapes(config, 32)["params"]["head"]["kernel"]
    assert head.shape == (feature_dim(config.model), 128)


def test_embedding_is_unit(small):
    encoder, variables, images = small
    output = encoder.apply(variables, images)
    np.testing.assert_allclose(np.linalg.norm(output.embedding, axis=1), 1, rtol=1e-6)


def test_initialisation_is_pytorchs(small):
    """Kernels and the head's bias: U(+-1/sqrt(fan_in)); batch norm: 1 and 0."""
    _, variables, _ = small
    for path, value in jax.tree.leaves_with_path(variables["params"]):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            np.testing.assert_array_equal(value, 1)
        elif "norm" in name:
            np.testing.assert_array_equal(value, 0)
        else:
            fan_in = 64 if "head" in name else np.prod(value.shape[:-1])
            bound = fan_in**-0.5
            assert np.abs(value).max() <= bound
            if value.size > 1000:
                assert np.abs(value).max() > 0.98 * bound
                assert np.std(value) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_initialisation_is_torchvisions(small):
    """Where 'he' is asked for: N(0, 2/fan_out) for convolutions, all else as before."""
    _, pytorchs, images = small
    config = base.get_config()
    config.model.name, config.model.width = "resnet10", 8
    config.model.init = "he"
    variables = jax.jit(make_encoder(config).init)(jax.random.key(0), images)
    jax.tree.map(
        np.testing.assert_array_equal,
        variables["params"]["head"],
        pytorchs["params"]["head"],
    )
    checked = 0
    for path, value in jax.tree.leaves_with_path(variables["params"]["backbone"]):
        if "kernel" in jax.tree_util.keystr(path) and value.size > 1000:
            std = (2 / (value.shape[0] * value.shape[1] * value.shape[3])) ** 0.5
            assert np.std(value) == pytest.approx(std, rel=0.1)
            outside = np.abs(value) > 2 * std  # 4.6 % of a normal distribution
            assert 0.03 < outside.mean() < 0.06
            checked += 1
    assert checked == 7


def test_l2_normalize():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]])
    np.testing.assert_allclose(l2_normalize(x)[0], [0.6, 0.8], rtol=1e-6)
    assert not l2_normalize(x)[1].any()
    assert np.isfinite(jax.jacobian(l2_normalize)(x)).all()


def test_evaluation_computes_in_unrounded_float32():
    """Whatever training does: no bfloat16, and no TF32 where a device has it."""
    config = small_config(**{"model.dtype": "bfloat16"})
    images = jnp.zeros((2, 8, 8, 3))
    variables = shapes(config, 8)
    for exact in (False, True):
        encoder = make_encoder(config, exact=exact)
        program = str(jax.make_jaxpr(encoder.apply)(variables, images))
        assert ("bf16" in program) != exact
        assert ("Precision.HIGHEST" in program) == exact


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("linear", {"backbone", "head"}),
        ("mlp", {"backbone", "head", "head_hidden"}),
        ("mlp_bn", {"backbone", "head", "head_hidden", "head_norm"}),
    ],
)
def test_heads(head, names):
    """What lies between the feature and the unit vector, in NumPy."""
    config = small_config(**{"model.head": head, "model.num_classes": 3})
    encoder = make_encoder(config, ((0,),), exact=True)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    variables = encoder.init(jax.random.key(0), images)
    params = variables["params"]
    assert params.keys() == names | {"classifier"}
    output, _ = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
    hidden = np.asarray(output.feature, np.float64)
    dense = lambda x, p: x @ np.asarray(p["kernel"]) + np.asarray(p["bias"])  # noqa: E731
    if head != "linear":
        hidden = dense(hidden, params["head_hidden"])
        assert hidden.shape == (6, 8)
        if head == "mlp_bn":
            hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
        hidden = np.maximum(hidden, 0)
    projected = dense(hidden, params["head"])
    length = np.sqrt((projected**2).sum(1, keepdims=True))
    np.testing.assert_allclose(output.embedding, projected / length, atol=1e-4)
    logits = dense(projected, params["classifier"])
    np.testing.assert_allclose(output.logits, logits, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)],
)
def test_parameters_are_torchvisions(name, count):
    """Those of the backbone: theirs have a classifier of 1,000 classes besides."""
    config = base.get_config()
    config.model.update(name=name, stem="imagenet")
    params = shapes(config, 224)["params"]["backbone"]
    feature = 2048 if name == "resnet50" else 512
    ours = sum(x.size for x in jax.tree.leaves(params))
    assert ours == count - 1000 * (feature + 1)
