"""Judged by the same rules: a run on other data, weights, embeddings of any program."""

import importlib
import json

import numpy as np
import pytest
import reference
from small import SmallRun, small_config

import eir_jax
from eir_jax.evaluation.export import export
from eir_jax.evaluation.knn import knn_accuracy
from eir_jax.evaluation.restore import restore_run
from eir_jax.experiments.evaluate import check_comparable
from eir_jax.run.checkpoint import Checkpoints
from eir_jax.system.config import save_config
from eir_jax.system.errors import UserError

command = importlib.import_module("eir_jax.evaluate")
TASKS = "--tasks=knn,retrieval,health"


def evaluated(out, *words):
    assert command.main([*map(str, words), TASKS, "--config.knn.k=1,5"]) == 0
    (file,) = (out / "eval").iterdir()
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write embeddings of three classes as another program would: of any length."""
    folder = tmp_path_factory.mktemp("embeddings")
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(3, 6))
    for name, count in (("train", 60), ("test", 30)):
        label = np.arange(count) % 3
        rows = (centre[label] + rng.normal(size=(count, 6))) * 7
        np.savez(folder / f"{name}.npz", embedding=rows, label=label)
    return folder / "train.npz", folder / "test.npz"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, one_device):
    """Return a run with the weights that it began with."""
    folder = tmp_path_factory.mktemp("run") / "w"
    folder.mkdir()
    config = small_config(**{"data.source": "digits", "data.name": "digits"})
    save_config(config, folder / "config.json")
    checkpoints = Checkpoints(folder / "checkpoints")
    meta = {"num_examples": 70, "train_hash": "a" * 64, "config": config.to_dict()}
    checkpoints.save(SmallRun(config).create(), meta, None)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    """Return a config of images of two colours, larger than those of the run."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    arrays = {}
    for name, count in (("train", 40), ("test", 20)):
        label = np.arange(count) % 2
        images = rng.integers(0, 120, (count, 12, 12, 3))
        images[..., 0] += 60 * label[:, None, None]
        arrays |= {f"{name}_images": images.astype(np.uint8), f"{name}_labels": label}
    np.savez(folder / "a.npz", **arrays)
    (folder / "colours.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'data': {'source': 'arrays', 'name': 'colours',\n"
        f"        'path': {str(folder / 'a.npz')!r}, 'image_size': 12}}}})\n"
    )
    return folder / "colours.py", arrays


def test_embeddings_of_any_program(files, tmp_path, one_device, capsys):
    both = ",".join(map(str, files))
    record = evaluated(tmp_path, f"--embeddings={both}", f"--out={tmp_path}")
    train, test = (dict(np.load(file)) for file in files)
    rows = [reference.unit(x["embedding"]) for x in (train, test)]
    expected = knn_accuracy(rows[1], test["label"], rows[0], train["label"], k=(1, 5))
    assert record["knn"] == {str(k): v for k, v in expected.items()}
    assert record["knn_feature"] == record["knn"] and "knn_bank" not in record
    cosine = rows[1] @ rows[1].T - 2 * np.eye(30)
    hits = test["label"][cosine.argmax(axis=1)] == test["label"]
    assert record["retrieval"]["R@1"] == pytest.approx(hits.mean())
    protocol = record["protocol"]
    assert protocol["encoder"] == "another program's"
    assert protocol["data"]["name"] == "train.npz and test.npz"
    assert "embedding: 6-d" in protocol["knn"]["features"]
    assert (tmp_path / "report.html").is_file()
    assert "kNN" in capsys.readouterr().out


def test_embeddings_of_one_set_are_judged_within_it(files, tmp_path, one_device):
    record = evaluated(tmp_path, f"--embeddings={files[0]}", f"--out={tmp_path}")
    assert "without the query" in record["protocol"]["knn"]["gallery"]
    assert 0.3 < record["knn"]["1"] < 1  # itself it would find always


def test_run_on_another_data_set(workdir, other_data, one_device):
    config, arrays = other_data
    out = workdir / "transfer" / "colours"
    record = evaluated(out, f"--workdir={workdir}", f"--config={config}")
    run = restore_run(workdir)
    mean, std = run.config.data.mean, run.config.data.std
    found = {}
    for name in ("train", "test"):
        pixels = arrays[f"{name}_images"] / 255
        views = np.float32((pixels - mean) / std)
        found[name] = run.embed(run.state, views).embedding
    expected = knn_accuracy(
        found["test"],
        arrays["test_labels"],
        found["train"],
        arrays["train_labels"],
        k=(1, 5),
    )
    assert record["knn"] == pytest.approx({str(k): v for k, v in expected.items()})
    assert "knn_bank" not in record and not (workdir / "eval").exists()
    assert record["protocol"]["data"]["name"] == "colours"
    assert record["protocol"]["encoder"] == "step 0, trained on digits (aaaaaaaaaaaa)"


def test_weights_are_judged_as_the_run(workdir, other_data, tmp_path, one_device):
    config, _ = other_data
    export(restore_run(workdir), workdir, tmp_path / "F.SAFETENSORS")
    words = [f"--weights={tmp_path / 'F.SAFETENSORS'}", f"--config={config}"]
    record = evaluated(tmp_path / "o", *words, f"--out={tmp_path / 'o'}")
    by_run = evaluated(
        tmp_path / "p", f"--workdir={workdir}", words[1], f"--out={tmp_path / 'p'}"
    )
    assert record["knn"] == by_run["knn"] and record["health"] == by_run["health"]
    assert record["protocol"]["encoder"].startswith("weights F.SAFETENSORS (")


def test_an_evaluation_is_not_written_over_that_of_another_run(
    workdir, other_data, files, one_device
):
    config, _ = other_data
    both = ",".join(map(str, files))
    for words in (
        [f"--workdir={workdir}", f"--config={config}"],
        [f"--embeddings={both}"],
    ):
        with pytest.raises(UserError, match=r"is the workdir of a run, .* give --out"):
            evaluated(workdir, *words, f"--out={workdir}")
    assert not (workdir / "report.html").exists()


def test_what_cannot_be_compared_is_refused_at_once(workdir, one_device, tmp_path):
    run = restore_run(workdir)
    larger = run.config.copy_and_resolve_references()
    larger.data.image_size = 32
    assert check_comparable(workdir, run, run) is run
    with pytest.raises(UserError, match="images of 8 px, and this one is on 32 px"):
        check_comparable(workdir, run, run._replace(config=larger))
    words = [f"--workdir={workdir}", f"--compare={tmp_path / 'no'}"]
    with pytest.raises(UserError, match="/no is no workdir"):
        command.main([*words, f"--out={tmp_path / 'o'}"])
    with pytest.raises(UserError, match="source=digits, lies at no path"):
        command.main([words[0], "--data_path=x", f"--out={tmp_path / 'o'}"])
    assert not list((tmp_path / "o").rglob("*.json"))


def test_from_python_as_by_the_command(files, workdir, other_data, tmp_path, capfd):
    config, _ = other_data
    how = {"tasks": ["knn", "health"], "settings": {"knn.k": (1, 5)}}
    record = eir_jax.evaluate(files, out=tmp_path / "e", **how)
    both = ",".join(map(str, files))
    by_command = evaluated(
        tmp_path / "c", f"--embeddings={both}", f"--out={tmp_path / 'c'}"
    )
    capfd.readouterr()
    for part in ("knn", "knn_feature", "health"):
        assert record[part] == by_command[part]
    assert record["protocol"]["encoder"] == "another program's"
    one = eir_jax.evaluate(str(files[0]), out=str(tmp_path / "one"), **how)
    assert "without the query" in one["protocol"]["knn"]["gallery"]
    export(restore_run(workdir), workdir, tmp_path / "F.safetensors")
    weights = eir_jax.evaluate(
        tmp_path / "F.safetensors", config=config, out=tmp_path / "w", **how
    )
    run = eir_jax.evaluate(workdir, config=str(config), **how)
    assert weights["knn"] == run["knn"] and weights["health"] == run["health"]
    assert (workdir / "transfer" / "colours" / "report.html").is_file()
    assert weights["protocol"]["encoder"].startswith("weights F.safetensors (")
    assert capfd.readouterr() == ("", "")
    for wrong, message in (
        ({"source": files}, "need out="),
        ({"source": tmp_path / "F.safetensors", "config": config}, "need out="),
        ({"source": files, "config": "digits"}, "config goes with a run or weights"),
        ({"source": [*files, *files], "out": "o"}, "or one file"),
        ({"source": files, "out": "o", "step": 7}, "step goes with a run"),
        ({"source": workdir, "config": config, "data_path": "x"}, "data_path goes"),
        ({"source": tmp_path / "no"}, "is no workdir"),
    ):
        with pytest.raises(UserError, match=message):
            eir_jax.evaluate(**wrong)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--embeddings=E"], "need --out"),
        (["--weights=E"], "need --out"),
        (["--embeddings=E", "--out=o", "--config=digits"], "--config goes with"),
        (["--embeddings=E", "--out=o", "--step=3"], "--step goes with"),
        (["--weights=E", "--out=o", "--compare=x"], "--compare and --data_path go"),
        (["--workdir=w", "--weights=E"], "not allowed with"),
    ],
)
def test_bad_command_lines_are_refused(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    assert message in capsys.readouterr().err


def test_bad_embeddings_are_refused(files, tmp_path, one_device):
    def said(*names, **arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        both = ",".join(str(n) for n in (*names, tmp_path / "x.npz"))
        with pytest.raises(UserError) as error:
            evaluated(tmp_path, f"--embeddings={both}", f"--out={tmp_path / 'o'}")
        return str(error.value)

    rows = np.ones((4, 6), np.float32)
    assert "takes train.npz,test.npz" in said(*files, embedding=rows)
    assert "differ in size" in said(files[0], embedding=rows[:, :5])
    assert "holds no 'embedding'" in said(files[0], rows=rows)
    assert "'feature' of" in said(files[0], embedding=rows, feature=rows[:3])
    assert "are zero" in said(files[0], embedding=0 * rows)
    wide = dict(np.load(files[0]))
    zeros = np.zeros_like(wide["embedding"])
    found = said(files[0], **wide, feature=zeros)
    assert "60 rows of the queries (feature) are zero" in found
    assert "no labels" in said(embedding=rows)
    for label in (-3, 2**40):  # neither unlabelled nor a class
        label = np.array([0, 1, 1, label])
        assert "from 0 to 2147483647, and -1" in said(embedding=rows, label=label)


@pytest.mark.parametrize(
    ("train", "test", "found"),
    [
        (True, False, {"knn", "retrieval", "health"}),  # within train
        (False, True, {"retrieval", "health"}),
        (False, False, {"health"}),
    ],
)
def test_labels_of_one_file_alone(train, test, found, files, tmp_path, one_device):
    names = []
    for file, labelled in zip(files, (train, test), strict=True):
        arrays = dict(np.load(file))
        names.append(str(tmp_path / file.name))
        np.savez(
            names[-1], **{k: arrays[k] for k in ("embedding", "label")[: 1 + labelled]}
        )
    words = [f"--embeddings={','.join(names)}", f"--out={tmp_path / 'o'}"]
    assert command.main([*words, "--config.knn.k=1,5"]) == 0
    record = json.loads((tmp_path / "o" / "eval" / "step_0.json").read_text())
    tasks = {"knn", "linear", "retrieval", "health", "figures"}
    assert tasks - record["refused"].keys() == found == tasks & record.keys()
    if train:
        alone = evaluated(tmp_path, f"--embeddings={names[0]}", f"--out={tmp_path}")
        assert alone["knn"] == record["knn"]
        assert "add 'label' to the second file" in record["refused"]["linear"]


def test_one_row_allows_nothing_and_says_so(tmp_path, one_device):
    np.savez(tmp_path / "E.npz", embedding=np.ones((1, 4), np.float32), label=[0])
    words = [f"--embeddings={tmp_path / 'E.npz'}", f"--out={tmp_path / 'o'}"]
    assert command.main(words) == 0
    record = json.loads((tmp_path / "o" / "eval" / "step_0.json").read_text())
    assert len(record["refused"]) == 5
    with pytest.raises(UserError, match="one train image"):
        command.main([*words, "--tasks=health"])
