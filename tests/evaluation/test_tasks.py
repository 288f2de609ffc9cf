"""The evaluation tasks: numbers against other tools, protocols that cannot drift."""

import json

import numpy as np
import pytest
import reference

from configs import base
from eir_jax.data.dataset import Dataset, Split
from eir_jax.evaluation import tasks
from eir_jax.evaluation.protocol import tag
from eir_jax.evaluation.retrieval import (
    precision_of_neighbours,
    recall_at_k,
    retrieval_scores,
)
from eir_jax.experiments.evaluate import keep_other_tasks
from eir_jax.system.errors import UserError


def clusters(seed=0, count=120, classes=4, spread=0.7, dim=8):
    rng = np.random.default_rng(seed)
    label = np.arange(count) % classes
    centre = rng.normal(size=(classes, dim))
    rows = reference.unit(centre[label] + spread * rng.normal(size=(count, dim)))
    return rows.astype(np.float32), label.astype(np.int32)


@pytest.mark.parametrize("spread", [0.2, 0.7, 5.0])
def test_retrieval_equals_pytorch_metric_learning(spread):
    for module in ("torch", "faiss", "pytorch_metric_learning"):
        pytest.importorskip(module, reason="`make oracle` installs it")
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    rows, label = clusters(spread=spread)
    label[:7] = 9  # a small class beside the large ones
    theirs = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
    ).get_accuracy(torch.tensor(rows), torch.tensor(label))
    ours = retrieval_scores(rows, label)
    assert ours["R@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours["R-precision"] == pytest.approx(theirs["r_precision"], abs=1e-6)
    want = theirs["mean_average_precision_at_r"]
    assert ours["MAP@R"] == pytest.approx(want, abs=1e-6)


def test_precision_by_hand():
    """Two classes: 'a' of three rows (R = 2), 'b' of two (R = 1), 'c' alone."""
    label = np.array([0, 0, 0, 1, 1, 2])
    neighbours = np.array(
        [
            [0, 1],  # first right, second wrong: P = 1/2, AP = (1 + 0) / 2
            [1, 0],  # only the second right: P = 1/2, AP = (0 + 1/2) / 2
            [0, 0],  # both right: 1, 1
            [1, 0],  # 1, 1
            [0, 1],  # R = 1: the second place does not count: 0, 0
            [0, 1],  # alone: left out
        ]
    )
    average, precision = precision_of_neighbours(neighbours, label)
    assert average == pytest.approx((0.5 + 0.25 + 1 + 1 + 0) / 5)
    assert precision == pytest.approx((0.5 + 0.5 + 1 + 1 + 0) / 5)


def test_scores_share_their_recall_and_end_where_they_should():
    rows, label = clusters()
    scores = retrieval_scores(rows, label, k=(1, 5))
    recall = recall_at_k(rows, label, k=(1, 5))
    assert {f"R@{k}": value for k, value in recall.items()} == {
        name: scores[name] for name in ("R@1", "R@5")
    }
    perfect = retrieval_scores(*clusters(spread=0.0), k=(1,))
    assert perfect == pytest.approx(dict.fromkeys(perfect, 1.0))


class FakeRun:
    """What a task asks of a run, without a checkpoint."""

    def __init__(self, bank, config):
        self.config, self.mesh = config, None
        self.state = type("State", (), {"memory": {"bank": bank}})


def subject(seed=0, **changes):
    config = base.get_config()
    config.knn.k = (1, 5, 20)
    config.linear.num_epochs = 20
    config.linear.batch_size = 64
    config.update_from_flattened_dict(changes)
    (train, train_label), (test, test_label) = clusters(0, 400), clusters(0, 80)
    # The same centres; other noise.
    rng = np.random.default_rng(seed + 5)
    test = reference.unit(test + 0.1 * rng.normal(size=test.shape)).astype(np.float32)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    dataset = Dataset(
        "arrays", "mine", Split(images, train_label), Split(images, test_label)
    )
    return tasks.Subject(
        FakeRun(train[::-1], config),
        dataset,
        tasks.Embedded(images, train_label, train, train * 3),
        tasks.Embedded(images, test_label, test, test * 3),
    )


def test_knn_on_embedding_feature_and_bank_equals_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    s = subject()
    parts, protocol = tasks.knn(s)
    galleries = {
        "knn": s.train.embedding,
        "knn_feature": s.train.embedding,  # three times as long: the same cosines
        "knn_bank": s.run.state.memory["bank"],
    }
    for name, gallery in galleries.items():
        for k in (1, 5, 20):
            theirs = KNeighborsClassifier(
                k,
                metric="cosine",
                algorithm="brute",
                weights=lambda distance: np.exp((1 - distance) / 0.1),
            ).fit(gallery, s.train.labels)
            want = theirs.score(s.test.embedding, s.test.labels)
            assert parts[name][str(k)] == pytest.approx(want)
        assert all(parts[name + "_top5"][str(k)] >= parts[name][str(k)] for k in (1, 5))
    assert protocol["k"] == [1, 5, 20] and protocol["temperature"] == 0.1


def test_linear_probe_is_chosen_on_train_alone():
    s = subject()
    parts, protocol = tasks.linear(s)
    assert parts["linear"].keys() == {
        *("top-1", "top-5", "learning_rate", "weight_decay")
    }
    assert parts["linear"]["top-1"] > 0.9
    wrong = s._replace(test=s.test._replace(labels=(s.test.labels + 1) % 4))
    other, again = tasks.linear(wrong)
    assert again == protocol
    for key in ("learning_rate", "weight_decay"):
        assert other["linear"][key] == parts["linear"][key]


def test_collapse_is_said():
    s = subject()
    healthy, _ = tasks.label_free(s)
    assert "warnings" not in healthy
    constant = np.tile(s.test.embedding[:1], (80, 1))
    parts, _ = tasks.label_free(s._replace(test=s.test._replace(embedding=constant)))
    assert "has collapsed" in parts["warnings"][0]


def test_classes_not_in_train_are_left_to_retrieval():
    s = subject()
    unseen = Dataset(
        "arrays",
        "birds",
        s.dataset.train,
        Split(s.dataset.test.images, s.test.labels + 10),
    )
    assert tasks.refused_tasks(unseen).keys() == {"knn", "linear"}
    with pytest.raises(UserError, match="do not occur in train"):
        tasks.knn(s._replace(dataset=unseen))
    assert not tasks.refused_tasks(s.dataset)
    unlabelled = Dataset("arrays", "mine", s.dataset.train, Split(s.test.images, None))
    assert tasks.refused_tasks(unlabelled).keys() == {"knn", "linear", "retrieval"}


# A number is only as good as its protocol. Whoever changes a default must see it here.
DEFAULT_HASHES = {
    "knn": "b1d71f7da826",
    "linear": "7b1e57d8f8c2",
    "retrieval": "430053b27b2e",
    "health": "7f658522cbb4",
}


@pytest.fixture(scope="module")
def protocols():
    config = base.get_config()
    s = subject()
    config.knn.k = (5, 20, 200)
    s = s._replace(run=FakeRun(s.run.state.memory["bank"], config))
    return {name: task(s)[1] for name, task in tasks.TASKS.items()}


def test_protocols_of_the_defaults_have_their_hashes(protocols):
    found = {name: tag(p, {})["hash"] for name, p in protocols.items()}
    assert found == DEFAULT_HASHES


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("knn", {"knn.temperature": 0.2}),
        ("knn", {"knn.k": (1, 5)}),
        ("knn", {"model.embedding_dim": 64}),
        ("linear", {"linear.seed": 1}),
        ("linear", {"linear.held_out": 0.2}),
        ("linear", {"linear.standardize": False}),
        ("linear", {"linear.weight_decays": (0.0,)}),
        ("retrieval", {"retrieval.k": (1, 2)}),
    ],
)
def test_another_setting_is_another_hash(task, changes):
    def hash_of(s):
        return tag(tasks.TASKS[task](s)[1], {})["hash"]

    assert hash_of(subject()) != hash_of(subject(**changes))


def test_what_other_tasks_found_of_the_checkpoint_stays(tmp_path):
    path = tmp_path / "step_7.json"
    shared = {"data": {"train_images": 3}, "transform": "none"}
    before = {
        "step": 7,
        "checkpoint": "abc",
        "knn": {"5": 0.5},
        "knn_bank": {"5": 0.4},
        "health": {"rank_me": 1.0},
        "warnings": ["collapsed"],
        "protocol": shared | {"knn": {"hash": "1"}, "health": {"hash": "2"}},
    }
    now = {"step": 7, "checkpoint": "abc", "retrieval": {"R@1": 0.3}}
    now["protocol"] = shared | {"retrieval": {"hash": "3"}}
    assert keep_other_tasks(now, path) == now  # there is none before
    path.write_text(json.dumps(before))
    kept = keep_other_tasks(now, path)
    assert kept == before | now | {"protocol": before["protocol"] | now["protocol"]}
    # What a task finds anew replaces all that it found before.
    anew = {"step": 7, "checkpoint": "abc", "knn": {"1": 0.6}, "health": {}}
    anew["protocol"] = shared | {"knn": {"hash": "4"}, "health": {"hash": "5"}}
    assert keep_other_tasks(anew, path) == anew
    # Of another checkpoint or other data nothing is kept, nor of no evaluation.
    for key, value in (("checkpoint", "abd"), ("protocol", shared | {"data": {}})):
        assert keep_other_tasks(now | {key: value}, path) == now | {key: value}


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"checkpoint": "abc"}'])
def test_a_damaged_evaluation_is_said_and_replaced(tmp_path, text, capsys):
    (tmp_path / "e.json").write_text(text)
    now = {"checkpoint": "abc", "protocol": {"data": {}, "transform": ""}}
    assert keep_other_tasks(now, tmp_path / "e.json") == now
    said = "is no evaluation" in capsys.readouterr().out
    assert said == (text != "{}")  # one of another checkpoint is just replaced
