"""The package as a library: what `import eir_jax` offers."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

import eir_jax
from eir_jax.system.config import load_config
from eir_jax.system.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = {
    "data.image_size": 8,
    "num_epochs": 2,
    "batch_size": 128,
    "model.name": "resnet6",
    "model.width": 4,
    "model.embedding_dim": 16,
    "eval_every_epochs": 0,
    "knn.k": (1, 5),
    # Of one view: it compiles in half the time.
    "objective": "ir",
    "lambda_intra": 0.0,
    "lambda_inter": 0.0,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, one_device):
    return tmp_path_factory.mktemp("run") / "digits"


@pytest.fixture(scope="module")
def encoder(workdir):
    config = load_config("digits", [f"--config.{k}={v}" for k, v in TINY.items()])
    return eir_jax.train(config, str(workdir))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder of ten digits of different sizes, and one that is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(load_digits().images[:10]):
        size = (8 + i, 8 + i)
        Image.fromarray(np.uint8(15.9 * image)).resize(size).save(folder / f"{i}.png")
    (folder / "x.png").write_bytes(b"no picture")
    return folder


def test_train_says_nothing(encoder, workdir, capfd):
    loggers = [logging.getLogger(name) for name in ("", "asyncio", "matplotlib")]
    levels = [logger.level for logger in loggers]
    assert encoder.step == 22 and encoder.image_size == 8
    assert encoder.config.model.width == 4
    assert "digits" in repr(encoder)
    again = eir_jax.load(workdir, 22).embed(np.zeros((3, 8, 8, 3), np.uint8))
    assert again.embedding.shape == (3, 16)
    assert capfd.readouterr() == ("", "")
    assert [logger.level for logger in loggers] == levels  # they are the caller's


def test_a_run_that_was_stopped_is_not_taken_for_trained(workdir, monkeypatch):
    loop = "eir_jax.training.loop.train_and_evaluate"
    for status, raised in ((130, KeyboardInterrupt), (75, SystemExit)):
        monkeypatch.setattr(loop, lambda *_, status=status: status)
        with pytest.raises(raised) as found:
            eir_jax.train("digits", workdir)
        if raised is SystemExit:
            assert found.value.code == 75


def test_embed_takes_arrays_files_and_folders(encoder, pictures, tmp_path, capfd):
    found = encoder.embed(str(pictures))
    assert found.path.tolist() == [f"{i}.png" for i in range(10)]
    assert "skipped x.png" in capfd.readouterr().err
    assert found.embedding.shape == (10, 16) and found.feature.shape == (10, 8)
    assert found.embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.embedding, axis=1), 1, rtol=1e-5)
    files = [str(pictures / "3.png"), pictures / "0.png"]
    some = encoder.embed(files)
    np.testing.assert_allclose(some.embedding, found.embedding[[3, 0]], atol=1e-5)
    one = encoder.embed(pictures / "3.png")
    np.testing.assert_allclose(one.embedding, found.embedding[[3]], atol=1e-5)
    images = np.stack([np.asarray(Image.open(pictures / "0.png").convert("RGB"))])
    by_array = encoder.embed(images)
    np.testing.assert_allclose(by_array.feature, found.feature[[0]], atol=1e-5)
    np.savez(tmp_path / "I.npz", images=images)
    of_file = encoder.embed(tmp_path / "I.npz")
    np.testing.assert_array_equal(of_file.embedding, by_array.embedding)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 9, 9, 3), np.uint8), r"uint8 \[2, 9, 9, 3\]; .* \[n, 8, 8, 3\]"),
        (np.zeros((2, 8, 8, 3)), "the images are float64"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8 \[8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "the array is empty"),
        ([], "the list is empty"),
        ("/nowhere", "none of 1"),
    ],
)
def test_other_images_are_refused_in_words(encoder, images, message):
    with pytest.raises(UserError, match=message):
        encoder.embed(images)


def test_evaluate_returns_the_record(encoder, workdir, capfd):
    record = eir_jax.evaluate(str(workdir), tasks=["knn"], settings={"knn.k": (1, 3)})
    assert record["step"] == 22 and record["knn"].keys() == {"1", "3"}
    assert record["knn"]["1"] > 0.3  # chance: .1
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UserError, match="no task 'knm'"):
        eir_jax.evaluate(workdir, tasks=["knm"])


def test_the_function_and_the_command_of_one_name_do_not_break_each_other():
    import eir_jax.evaluate as command

    assert callable(command.main) and callable(eir_jax.evaluate)
    code = "import eir_jax.evaluate; assert callable(eir_jax.evaluate)"
    more = "from eir_jax import evaluate, train, load, knn, neighbours, Transformer"
    subprocess.run([sys.executable, "-c", f"{more}; {code}"], check=True, cwd=ROOT)


def test_import_is_cheap_and_names_are_listed():
    code = (
        "import sys, eir_jax; names = dir(eir_jax); "
        "heavy = {'jax', 'tensorflow', 'sklearn', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; assert set(eir_jax.__all__) <= set(names); "
        "print(eir_jax.__version__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        eir_jax.lod  # noqa: B018


def test_neighbours_and_knn_are_those_of_numpy(one_device):
    rng = np.random.default_rng(0)
    gallery, query = rng.normal(size=(50, 6)), rng.normal(size=(9, 6))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
    expected = unit[0] @ unit[1].T
    cosine, index = eir_jax.neighbours(gallery, query, k=4)
    np.testing.assert_array_equal(index, np.argsort(-expected, axis=1)[:, :4])
    np.testing.assert_allclose(cosine, -np.sort(-expected, axis=1)[:, :4], atol=1e-6)
    _, own = eir_jax.neighbours(gallery)
    assert own.shape == (50, 8) and (own != np.arange(50)[:, None]).all()
    label = rng.integers(0, 3, 50)
    assert eir_jax.knn(gallery, label, gallery, label, k=[1]) == {1: 1.0}


def test_transformer_in_a_pipeline(encoder, workdir, pictures):
    digits = load_digits()
    images = np.uint8(digits.images * 15.9)[:300, :, :, None].repeat(3, -1)
    labels = digits.target[:300]
    model = make_pipeline(eir_jax.Transformer(workdir), KNeighborsClassifier(3))
    model.fit(images[:200], labels[:200])
    assert model.score(images[200:], labels[200:]) > 0.3
    features = eir_jax.Transformer(workdir, output="feature").fit_transform(images[:2])
    np.testing.assert_array_equal(features, encoder.embed(images[:2]).feature)
    with pytest.raises(UserError, match="1 of the pictures are broken"):
        eir_jax.Transformer(workdir).transform(pictures)


def test_what_is_no_local_path_is_refused(encoder, workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: eir_jax.load("gs://b/w"),
        lambda: eir_jax.train("digits", "gs://b/w", TINY),
        lambda: eir_jax.evaluate("gs://b/w"),
        lambda: eir_jax.evaluate(workdir, out="gs://b/o"),
        lambda: encoder.embed("gs://b/P"),
        lambda: encoder.export("gs://b/F.onnx"),
    ):
        with pytest.raises(UserError, match="is no local path"):
            call()
    assert not list(tmp_path.iterdir())


def test_lines_of_the_pages_run_as_they_stand(
    encoder, workdir, pictures, tmp_path, monkeypatch, capfd
):
    """README.md, docs/api.md (but for training) and docs/weights.md's ONNX."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pictures").symlink_to(workdir)
    (tmp_path / "PICTURES").symlink_to(pictures)
    encoder.export(tmp_path / "F.onnx")
    found = encoder.embed(pictures)
    np.savez(tmp_path / "E.npz", embedding=found.embedding, path=found.path)
    monkeypatch.chdir(tmp_path)
    digits = np.uint8(load_digits().images[:20] * 15.9)
    images = digits[..., None].repeat(3, axis=-1)
    names = {"images": images, "labels": load_digits().target[:20]}
    ran = 0
    for page in ("README.md", "docs/api.md", "docs/weights.md"):
        blocks = re.findall(
            r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL
        )
        for block in blocks:
            if "eir_jax.train(" in block or "eir_jax.evaluate(" in block:
                continue  # run by other tests, on what is smaller
            if "import torch" in block:  # by tests/evaluation/test_export.py
                continue
            size = "np.zeros((3, 8, 8, 3)"
            exec(block.replace("np.zeros((3, 16, 16, 3)", size), names)
            ran += 1
    assert ran == 5 and names["row"].shape == (10, 8)
    assert names["embedding"].shape == (3, 16)
    out, err = capfd.readouterr()
    assert len(out.splitlines()) >= 10 and "skipped x.png" in err


def test_exported_weights_embed_as_the_run(encoder, workdir, pictures, tmp_path):
    file = tmp_path / "F.safetensors"
    encoder.export(str(file))
    found, expected = eir_jax.load(file).embed(pictures), encoder.embed(pictures)
    np.testing.assert_array_equal(found.embedding, expected.embedding)
    assert found.meta["checkpoint"] == expected.meta["checkpoint"]


def test_training_begins_with_the_backbone_alone(encoder, workdir, tmp_path):
    begun = eir_jax.train(
        "digits",
        tmp_path / "w",
        TINY | {"num_epochs": 0, "seed": 3, "model.weights": workdir},
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    one, other = begun.embed(images), encoder.embed(images)
    np.testing.assert_array_equal(one.feature, other.feature)
    assert (one.embedding != other.embedding).all()
    with pytest.raises(UserError, match=r"do not fit.*they fit .*model.width=4"):
        eir_jax.train(
            "digits",
            tmp_path / "x",
            TINY | {"model.weights": workdir, "model.width": 8},
        )
    with pytest.raises(UserError, match="no file of weights"):
        eir_jax.train("digits", tmp_path / "y", TINY | {"model.weights": "nothing"})
