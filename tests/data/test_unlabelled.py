"""Unlabelled images and unseen classes: trained on, and in no number they spoil."""

import json

import numpy as np
import pytest
import reference
from small import small_config

from eir_jax.data.dataset import Dataset, Split, labelled_rows
from eir_jax.data.sources import load
from eir_jax.evaluation.allowed import refused_tasks
from eir_jax.evaluation.restore import restore_run
from eir_jax.experiments.evaluate import evaluate
from eir_jax.training.loop import train_and_evaluate
from eir_jax.training.watch import best_by

pytestmark = pytest.mark.usefixtures("one_device")
ONE_IMAGE = 1.01 / 20  # of the test images; float32 may order two neighbours otherwise
UNLABELLED = {"train": 30, "test": 5}


def save_arrays(path, train, test):
    """Write noise on a colour for each class; labels as given."""
    rng = np.random.default_rng(0)
    colour = rng.integers(40, 200, (8, 1, 1, 3))
    arrays = {}
    for split, label in (("train", train), ("test", test)):
        noise = rng.integers(-40, 40, (len(label), 8, 8, 3))
        arrays[f"{split}_images"] = (colour[label] + noise).astype(np.uint8)
        arrays[f"{split}_labels"] = label
    np.savez(path, **arrays)


def trained(folder, train, test):
    """Train two epochs on such arrays; return the workdir and what it noted."""
    save_arrays(folder / "a.npz", train, test)
    config = small_config(
        **{
            "data.source": "arrays",
            "data.path": str(folder / "a.npz"),
            "data.pipeline": "device",
            "knn.k": (1, 7),
            "linear.num_epochs": 2,
            "linear.learning_rates": (0.1,),
            "linear.weight_decays": (1e-3,),
            "num_epochs": 2,
            "eval_every_epochs": 1,
            "model.name": "resnet6",
            "model.width": 2,
        }
    )
    assert train_and_evaluate(config, folder / "run") == 0
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return folder / "run", [r for r in map(json.loads, lines) if "health" in r]


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """Return a run whose labels are partly -1, its notes, its record."""
    rng = np.random.default_rng(1)
    labels = {"train": np.arange(64) % 3, "test": np.arange(25) % 3}
    for split, count in UNLABELLED.items():
        labels[split][rng.permutation(len(labels[split]))[:count]] = -1
    workdir, noted = trained(tmp_path_factory.mktemp("partly"), **labels)
    tasks = ("knn", "linear", "retrieval", "health", "figures")
    return workdir, noted, evaluate(workdir, tasks=tasks)


def votes(query, query_label, gallery, gallery_label, k):
    """Return the accuracy of weighted kNN, in float64."""
    cosine = reference.unit(query) @ reference.unit(gallery).T
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    weight = np.exp(np.take_along_axis(cosine, nearest, axis=1) / 0.1)
    found = gallery_label[nearest]
    score = np.stack([(weight * (found == c)).sum(axis=1) for c in range(3)], axis=1)
    return float((score.argmax(axis=1) == query_label).mean())


def test_numbers_are_those_of_the_labelled_images(partly):
    """Votes, bank as gallery and R@1 again by hand, from the checkpoint."""
    workdir, noted, record = partly
    run = restore_run(workdir)
    dataset = load(run.config.data)
    rows = {name: labelled_rows(dataset, name) for name in ("train", "test")}
    assert len(rows["train"]) == 34 and len(rows["test"]) == 20
    embedding, label = {}, {}
    for name, index in rows.items():
        split = getattr(dataset, name)
        embedding[name] = np.asarray(
            run.embed(run.state, split.images).embedding, np.float64
        )[index]
        label[name] = split.labels[index]
    bank = np.asarray(run.state.memory["bank"], np.float64)[rows["train"]]
    query = (embedding["test"], label["test"])
    for k in (1, 7):
        for part, gallery in (("knn", embedding["train"]), ("knn_bank", bank)):
            want = votes(*query, gallery, label["train"], k)
            assert record[part][str(k)] == pytest.approx(want, abs=ONE_IMAGE)
        assert noted[-1]["knn"][str(k)] == record["knn"][str(k)]
    cosine = reference.unit(query[0]) @ reference.unit(query[0]).T
    np.fill_diagonal(cosine, -2)
    hits = label["test"][cosine.argmax(axis=1)] == label["test"]
    assert record["retrieval"]["R@1"] == pytest.approx(hits.mean(), abs=ONE_IMAGE)
    assert record["linear"].keys() >= {"top-1"}
    data = record["protocol"]["data"]
    assert (data["train_images"], data["unlabelled_train_images"]) == (64, 30)
    assert (data["test_images"], data["unlabelled_test_images"]) == (25, 5)
    assert noted[-1]["protocol"] == record["protocol"]["knn"]["hash"]
    for name in ("tsne", "neighbours"):
        assert (workdir / "figures" / f"{name}.png").stat().st_size > 1000


def test_fewer_tasks_take_nothing_away(partly):
    """Neither from the numbers nor from the report; pictures alone write no numbers."""
    workdir, _, record = partly
    (file,) = (workdir / "eval").iterdir()
    evaluate(workdir, tasks=("retrieval",))
    assert json.loads(file.read_text()) == json.loads(json.dumps(record))
    assert "Linear probe" in (workdir / "report.html").read_text()
    file.unlink()
    evaluate(workdir, tasks=("figures",))
    assert not file.exists()
    evaluate(workdir, tasks=("health",))
    assert "knn" not in json.loads(file.read_text())


def test_more_voters_than_labels_are_left_out_and_said(tmp_path, capsys):
    labels = np.where(np.arange(40) < 5, np.arange(40) % 3, -1)
    _, noted = trained(tmp_path, labels, np.arange(20) % 3)
    assert noted[0]["knn"].keys() == {"1"}
    said = "without k=7 of knn.k: there are 5 labelled train images (--config.knn.k=1)"
    assert said in capsys.readouterr().out


def test_unseen_classes_are_followed_by_retrieval(tmp_path):
    """No kNN, R@K instead, which chooses the best checkpoint too."""
    workdir, noted = trained(tmp_path, np.arange(64) % 3, 3 + np.arange(25) % 4)
    assert [r["epoch"] for r in noted] == [1, 2]
    assert all("knn" not in r for r in noted)
    assert list(noted[0]["retrieval"]) == ["R@1", "R@2", "R@4", "R@8"]
    record = evaluate(workdir, tasks=("retrieval",))
    for name, value in noted[-1]["retrieval"].items():
        assert record["retrieval"][name] == pytest.approx(value)
    assert noted[-1]["protocol"] == record["protocol"]["retrieval"]["hash"]
    recall = {r["step"]: r["retrieval"]["R@1"] for r in noted}
    best = max(recall, key=lambda step: (recall[step], step))
    assert int(restore_run(workdir, "best").state.step) == best


def test_what_ranks_checkpoints():
    assert best_by({"knn": {"5": 0.1, "20": 0.3}, "retrieval": {"R@1": 0.9}}) == 0.3
    assert best_by({"retrieval": {"R@1": 0.2, "R@2": 0.4}}) == 0.2
    assert best_by({"retrieval": {"R@1": 0.0}}) == 0.0
    assert best_by({"health": {}}) is None


def test_one_class_alone_is_not_retrieved():
    images = np.zeros((9, 8, 8, 3), np.uint8)
    test = Split(images, np.array([-1, -1, 2, 2, 2, 2, 2, 2, 2]))
    dataset = Dataset("arrays", "mine", Split(images, None), test)
    refused = refused_tasks(dataset, small_config())
    assert refused.keys() == {"knn", "linear", "retrieval"}
    assert "all of one class" in refused["retrieval"]
