"""Weights out, read by the other side; weights in, to the bit."""

import json
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SmallRun, small_config

from eir_jax.evaluation.embed import evaluation_view
from eir_jax.evaluation.export import export
from eir_jax.evaluation.restore import restore, restore_run, restore_weights, tensors_of
from eir_jax.models.encoder import make_encoder
from eir_jax.models.weights import (
    from_torchvision,
    network_of,
    read_weights,
    sha256,
    to_torchvision,
    write_weights,
)
from eir_jax.run.checkpoint import Checkpoints
from eir_jax.system.config import save_config
from eir_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
NETWORKS = {  # with a crop to the centre, and the pooling of the larger stem
    "small": {"data.image_size": 16},
    "imagenet": {"model.stem": "imagenet", "data.image_size": 24, "data.resize": 33},
}


def images_of(config):
    """Return 256 images with the smoothness and the colours of pictures."""
    side = config.data.resize or config.data.image_size
    rng = np.random.default_rng(5)
    coarse = rng.uniform(0, 255, (256, 4, 4, 3)).repeat(9, 1).repeat(9, 2)
    noisy = coarse[:, :side, :side] + rng.normal(0, 20, (256, side, side, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def save_run(folder, **changes):
    """Save a checkpoint whose batch norm has seen images."""
    folder.mkdir()
    config = small_config(**changes, **{"lambda_inter": 0.0, "model.init": "he"})
    config.batch_norm.sharing = "all"
    config.data.std = (0.2, 0.25, 0.3)
    small = SmallRun(config)
    state = small.create()
    views = evaluation_view(jnp.asarray(images_of(config)[:64]), config)

    @jax.jit
    def seen(stats):
        variables = {"params": state.params, "batch_stats": stats}
        _, new = small.encoder.apply(
            variables, views, train=True, mutable=["batch_stats"]
        )
        return new["batch_stats"]

    stats = state.batch_stats
    for _ in range(20):
        stats = seen(stats)
    state = state.replace(batch_stats=stats, step=state.step + 3)
    save_config(config, folder / "config.json")
    checkpoints = Checkpoints(folder / "checkpoints")
    meta = {"num_examples": 70, "train_hash": "0" * 64, "config": config.to_dict()}
    checkpoints.save(state, meta, None)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory, one_device):
    """Return a run, its images, what it says of them, and where it is exported to."""
    workdir = save_run(tmp_path_factory.mktemp("run") / "w", **NETWORKS[request.param])
    (workdir / "eval").mkdir()
    (workdir / "eval" / "step_3.json").write_text('{"knn": {"200": 0.5}}')
    run = restore_run(workdir)
    images = images_of(run.config)
    return workdir, run, images, run.embed(run.state, images)


def assert_close(found, expected):
    """All rows agree to 1e-5 of their length, and they are no row twice."""
    for one, other in zip(found, expected, strict=True):
        other = np.asarray(other)
        difference = np.linalg.norm(np.asarray(one) - other, axis=1)
        assert (difference <= 1e-5 * np.linalg.norm(other, axis=1)).all()
    assert np.std(expected[0], axis=0).max() > 1e-3


def test_safetensors_come_back_to_the_bit(exported, tmp_path):
    workdir, run, images, expected = exported
    file = tmp_path / "F.safetensors"
    export(run, workdir, file)
    back = restore_weights(file)
    state = jax.tree.map(np.asarray, (run.state.params, run.state.batch_stats))
    jax.tree.map(
        np.testing.assert_array_equal,
        (back.state.params, back.state.batch_stats),
        state,
    )
    for one, other in zip(back.embed(back.state, images), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert back.config.model == run.config.model and int(back.state.step) == 3
    about = read_weights(file).about
    assert about["evaluation"] == {"knn": {"200": 0.5}}
    side = images.shape[1]
    assert about["input"] == f"uint8 RGB [n, {side}, {side}, 3]"
    assert f"{side}x{side}" in about["preparation"] and "mean (0.4914" in about["view"]
    assert about["sha256"] == sha256(
        to_torchvision(back.state.params, back.state.batch_stats)
    )


def test_an_evaluation_that_was_cut_short_is_said_and_left_out(
    exported, tmp_path, capsys
):
    _, run, *_ = exported
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "step_3.json").write_text('{"knn": {')
    export(run, tmp_path, tmp_path / "F.safetensors")
    assert "step_3.json cannot be read" in capsys.readouterr().out
    assert read_weights(tmp_path / "F.safetensors").about["evaluation"] == {}


def test_onnxruntime_says_the_same(exported, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    workdir, run, images, expected = exported
    export(run, workdir, tmp_path / "F.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "F.onnx")
    assert [x.name for x in session.get_outputs()] == ["embedding", "feature"]
    assert_close(session.run(None, {"images": images}), expected)
    assert session.run(None, {"images": images[:1]})[0].shape == (1, 16)
    notes = session.get_modelmeta().custom_metadata_map["eir_jax"]
    assert json.loads(notes)["config"]["model"]["width"] == 4


def test_jax_deserialises_the_same(exported, tmp_path):
    workdir, run, images, expected = exported
    export(run, workdir, tmp_path / "F.stablehlo")
    content = (tmp_path / "F.stablehlo").read_bytes()
    call = jax.jit(jax.export.deserialize(bytearray(content)).call)
    assert_close(call(images), expected)
    assert call(images[:3])[0].shape == (3, 16)
    notes = json.loads((tmp_path / "F.stablehlo.json").read_text())
    assert notes["step"] == 3 and len(notes["sha256"]) == 64


def test_pytorch_says_the_same_by_the_loader_of_the_docs(exported, tmp_path):
    torch = pytest.importorskip("torch")
    workdir, run, images, expected = exported
    export(run, workdir, tmp_path / "F.safetensors")
    page = (ROOT / "docs" / "weights.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(next(block for block in blocks if "nn.Module" in block), names)
    with torch.no_grad():
        found = names["Encoder"](tmp_path / "F.safetensors")(torch.from_numpy(images))
    assert_close(found, expected)


def test_backbone_of_a_run_is_taken_and_the_head_is_not(exported):
    workdir, run, _, _ = exported
    state = jax.tree.map(lambda x: np.asarray(x) + 1, run.state)
    params, stats = from_torchvision(
        tensors_of(workdir), state.params, state.batch_stats, with_head=False
    )
    same = jax.tree.map(np.array_equal, params, run.state.params)
    assert all(jax.tree.leaves(same["backbone"])) and not same["head"]["kernel"]
    np.testing.assert_array_equal(params["head"]["bias"], state.params["head"]["bias"])
    assert all(
        jax.tree.leaves(jax.tree.map(np.array_equal, stats, run.state.batch_stats))
    )


# Weights of other programs.


def theirs(width=4, blocks=(1, 1, 1, 1), size=3, prefix="", head=(10, 32)):
    """Return arrays as PyTorch programs save them."""
    rng = np.random.default_rng(3)

    def normal(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    found, inputs = {"conv1.weight": normal(width, 3, size, size)}, width

    def norm(name, channels):
        for array in ("weight", "running_var"):
            found[f"{name}.{array}"] = np.abs(normal(channels)) + 0.5
        for array in ("bias", "running_mean"):
            found[f"{name}.{array}"] = normal(channels)
        found[f"{name}.num_batches_tracked"] = np.array(9)

    norm("bn1", width)
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            found[f"{name}.conv1.weight"] = normal(outputs, inputs, 3, 3)
            found[f"{name}.conv2.weight"] = normal(outputs, outputs, 3, 3)
            norm(f"{name}.bn1", outputs)
            norm(f"{name}.bn2", outputs)
            if inputs != outputs:
                found[f"{name}.downsample.0.weight"] = normal(outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    found |= {"fc.weight": normal(*head), "fc.bias": normal(head[0])}
    return {prefix + name: value for name, value in found.items()}


def save_theirs(file, tensors):
    from safetensors.numpy import save_file

    save_file(tensors, file)
    return file


@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
def test_embedding_by_another_programs_weights_is_its_feature(
    prefix, tmp_path, one_device
):
    file = save_theirs(tmp_path / "F.safetensors", theirs(prefix=prefix))
    run = restore_weights(file, ["--config.data.image_size=8"])
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    embedding, feature = run.embed(run.state, images)
    assert feature.shape == (5, 32)
    length = np.linalg.norm(feature, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding, feature / length, rtol=1e-5, atol=1e-7)


def test_bottlenecks_are_torchvisions(one_device):
    """Stride in the 3x3 convolution, where the ResNet's paper has it in the 1x1."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    changes = {"model.name": "resnet50", "model.stem": "imagenet", "model.width": 8}
    encoder = make_encoder(small_config(**changes), exact=True)
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images))
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda x: (
            np.abs(rng.normal(0, 0.3, x.shape)).astype(np.float32) + 0.1
            if len(x.shape) == 1
            else rng.normal(0, 0.1, x.shape).astype(np.float32)
        ),
        like,
    )
    arrays = to_torchvision(variables["params"], variables["batch_stats"])
    weights = {name: torch.tensor(np.asarray(x)) for name, x in arrays.items()}

    def convolve(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{name}.{key}"] for key in keys))

    x = convolve(torch.tensor(images).permute(0, 3, 1, 2), "conv1", stride=2)
    x = F.max_pool2d(F.relu(norm(x, "bn1")), 3, 2, 1)
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(convolve(x, f"{name}.conv1"), f"{name}.bn1"))
            y = F.relu(norm(convolve(y, f"{name}.conv2", stride), f"{name}.bn2"))
            y = norm(convolve(y, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = convolve(x, f"{name}.downsample.0", stride)
                x = norm(x, f"{name}.downsample.1")
            x = F.relu(x + y)
    found = jax.jit(encoder.apply)(variables, images).feature
    want = x.mean((2, 3)).numpy()
    assert want.std() > 0.1
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4 * want.max())


def test_larger_stem_is_prepared_as_imagenet(tmp_path, one_device):
    file = save_theirs(tmp_path / "F.safetensors", theirs(size=7, blocks=(3, 4, 6, 3)))
    data = restore_weights(file).config.data
    assert (data.image_size, data.resize, data.mean[0]) == (224, 256, 0.485)
    smaller = restore_weights(file, ["--config.data.image_size=64"]).config.data
    assert (smaller.image_size, smaller.resize) == (64, 73)  # no corner alone


def test_pth_is_read_by_pytorch_as_weights_alone(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {
        name: torch.from_numpy(x) for name, x in theirs(prefix="module.").items()
    }
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "F.pth")
    found = read_weights(tmp_path / "F.pth").tensors
    expected = {n: x for n, x in theirs().items() if "num_batches" not in n}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": tensors, "x": Evil()}, tmp_path / "F.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    for name in ("F", "model", "text", "empty"):
        with pytest.raises(UserError) as error:
            read_weights(tmp_path / f"{name}.pth")
        assert "cannot be read as weights alone" in str(error.value)
        assert str(error.value).endswith("torch.save(model.state_dict(), FILE)")
    with pytest.raises(UserError, match=r"holds no ResNet|as weights alone"):
        read_weights(tmp_path / "pickle.pth")  # and no warning of PyTorch's
    assert not (tmp_path / "ran").exists()


def test_pth_without_pytorch_and_onnx_without_onnx_say_what_to_do(
    exported, tmp_path, monkeypatch
):
    workdir, run, _, _ = exported
    (tmp_path / "F.pth").touch()
    for package in ("torch", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"install torch, or save it as \.safetensors"):
        read_weights(tmp_path / "F.pth")
    with pytest.raises(UserError, match="pip install onnx"):
        export(run, workdir, tmp_path / "F.onnx")
    assert [x.name for x in tmp_path.iterdir()] == ["F.pth"]


def test_half_precision_is_read_as_float32(tmp_path, one_device):
    import ml_dtypes

    tensors = {n: x for n, x in theirs().items() if "num_batches" not in n}
    file, expected = tmp_path / "F.safetensors", {}
    for kind in (np.float16, ml_dtypes.bfloat16, np.float64):
        given = {name: x.astype(kind) for name, x in tensors.items()}
        save_theirs(file, given)
        found = restore_weights(file, ["--config.data.image_size=8"])
        expected = given["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
        kernel = found.state.params["backbone"]["conv"]["kernel"]
        assert kernel.dtype == np.float32
        np.testing.assert_array_equal(kernel, expected)


def test_what_does_not_fit_is_named():
    state = SmallRun(small_config(**{"model.name": "resnet10"})).create()

    def taken(**how):
        return from_torchvision(
            {n: x for n, x in theirs(**how).items() if "num_batches" not in n},
            state.params,
            state.batch_stats,
            with_head=False,
        )

    taken()
    with pytest.raises(
        UserError,
        match=r"bn1.bias is \[8\] there, \[4\] here.*more; they fit .*model.width=8",
    ):
        taken(width=8)
    with pytest.raises(
        UserError, match=r"layer1.1.bn1.bias has no place here.*resnet18"
    ):
        taken(blocks=(2, 2, 2, 2))
    with pytest.raises(UserError, match=r"\[4, 3, 7, 7\] there.*model.stem=imagenet"):
        taken(size=7)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"blocks": (1, 2, 1, 1)},
            r"\[1, 2, 1, 1\] basic blocks a stage; there are",
        ),
        ({"size": 5}, "the first convolution is 5x5"),
    ],
)
def test_other_networks_are_refused(how, message):
    with pytest.raises(UserError, match=message):
        network_of(theirs(**how))


def test_bottlenecks_and_other_heads_go_out_and_in():
    """By torchvision's names, as far as it has such layers."""
    changes = {"model.name": "resnet50", "model.head": "mlp_bn"}
    config = small_config(**changes, **{"model.num_classes": 3})
    rng = np.random.default_rng(0)
    encoder = make_encoder(config)
    like = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    )
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape), like)
    tensors = to_torchvision(variables["params"], variables["batch_stats"])
    assert network_of(tensors) == {"name": "resnet50", "width": 4, "stem": "small"}
    names = {"layer1.0.conv3.weight", "layer4.2.bn3.running_var", "fc_hidden.bias"}
    assert names | {"fc_norm.running_mean", "classifier.weight"} <= tensors.keys()
    params, stats = from_torchvision(
        tensors, like["params"], like["batch_stats"], with_head=True
    )
    back = {"params": params, "batch_stats": stats}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, variables
    )


@pytest.mark.parametrize(
    ("changes", "file", "words"),
    [
        ({"model.head": "mlp"}, "a.onnx", "give a .safetensors or .stablehlo"),
        ({"model.name": "resnet50"}, "a.onnx", "basic blocks and a linear head alone"),
        ({"model.towers": "lab"}, "a.safetensors", "use it from its workdir"),
    ],
)
def test_networks_that_a_form_does_not_hold_are_refused(changes, file, words, tmp_path):
    run = SimpleNamespace(config=small_config(**changes))
    with pytest.raises(UserError, match=words):
        export(run, tmp_path, tmp_path / file)


def test_bad_files_are_refused_in_words(tmp_path):
    file = tmp_path / "F.safetensors"
    for content in (b"", b"no safetensors at all", (3).to_bytes(8, "little") + b"{}}"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as safetensors"):
            read_weights(file)
    wrong = {"conv1.weight": np.zeros(9, np.float32)}
    save_theirs(file, theirs() | wrong)
    with pytest.raises(
        UserError, match=r"F\.safetensors: conv1\.weight is \[9\], not \[out, in"
    ):
        restore_weights(file)
    wrong = {"layer4.0.conv2.weight": np.ones((7, 7, 3, 3), np.float32)}
    save_theirs(file, theirs() | wrong)
    with pytest.raises(UserError) as error:
        restore_weights(file)
    said = str(error.value)
    assert f"{file} is not whole" in said and "--config.model" not in said
    from safetensors.numpy import save_file

    save_file(theirs(), file, {"eir_jax": "[1]"})
    with pytest.raises(UserError, match="damaged: it notes a list"):
        read_weights(file)
    save_theirs(file, {"blocks.0.weight": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"no ResNet .*it holds blocks.0.weight"):
        read_weights(file)
    save_theirs(file, theirs() | {"bn1.bias": np.array([0, np.nan, 0, 0], np.float32)})
    with pytest.raises(UserError, match=r"bn1\.bias of .* is not finite"):
        read_weights(file)
    tensors = {n: x for n, x in theirs().items() if "num_batches" not in n}
    write_weights(file, tensors, {"sha256": sha256(tensors)})
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_weights(file)
    with pytest.raises(UserError, match="no workdir or file of weights"):
        restore(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"give a \.safetensors"):
        read_weights(ROOT / "README.md")
