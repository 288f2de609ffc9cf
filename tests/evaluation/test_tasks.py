"""The evaluation tasks: numbers against other tools, protocols that cannot drift."""

import json

import numpy as np
import pytest
import reference

from configs import base
from eir_jax.data.dataset import Dataset, Split
from eir_jax.evaluation import tasks
from eir_jax.evaluation.allowed import judged_split, refused_tasks, remarks, votes
from eir_jax.evaluation.protocol import tag
from eir_jax.evaluation.retrieval import (
    precision_of_neighbours,
    recall_at_k,
    retrieval_scores,
)
from eir_jax.evaluation.scores import accuracies
from eir_jax.experiments.evaluate import read_before, with_other_tasks
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


def subject(seed=0, classes=4, **changes):
    config = base.get_config()
    config.knn.k = (1, 5, 20)
    config.linear.num_epochs = 20
    config.linear.batch_size = 64
    config.update_from_flattened_dict(changes)
    (train, train_label), (test, test_label) = (
        clusters(0, 400, classes=classes),
        clusters(0, 80, classes=classes),
    )
    # The same centres; other noise.
    rng = np.random.default_rng(seed + 5)
    test = reference.unit(test + 0.1 * rng.normal(size=test.shape)).astype(np.float32)
    images, test_images = (np.zeros((n, 1, 1, 3), np.uint8) for n in (400, 80))
    dataset = Dataset(
        "arrays", "mine", Split(images, train_label), Split(test_images, test_label)
    )
    return tasks.Subject(
        FakeRun(train[::-1], config),
        dataset,
        query=tasks.Embedded(test_images, test_label, test, test * 3),
        gallery=tasks.Embedded(images, train_label, train, train * 3),
    )


def data(train, test=None, name="mine"):
    """Return data of blank images with these labels; 'none': without labels."""

    def split(labels):
        if labels is None:
            return None
        images = np.zeros((5 if labels == "none" else len(labels), 2, 2, 3), np.uint8)
        return Split(images, None if labels == "none" else np.array(labels, np.int32))

    train = split(train)
    assert train is not None
    return Dataset("arrays", name, train, split(test))


def settings(knn=(1,), retrieval=(1,)):
    config = base.get_config()
    config.knn.k, config.retrieval.k = knn, retrieval
    return config


def test_knn_on_embedding_feature_and_bank_equals_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    s = subject(classes=7)
    parts, protocol = tasks.knn(s)
    galleries = {
        "knn": s.gallery.embedding,
        "knn_feature": s.gallery.embedding,  # three times as long: the same cosines
        "knn_bank": s.run.state.memory["bank"],
    }
    for name, gallery in galleries.items():
        for k in (1, 5, 20):
            theirs = KNeighborsClassifier(
                k,
                metric="cosine",
                algorithm="brute",
                weights=lambda distance: np.exp((1 - distance) / 0.1),
            ).fit(gallery, s.gallery.labels)
            votes = theirs.predict_proba(s.query.embedding)
            want = theirs.score(s.query.embedding, s.query.labels)
            assert parts[name][str(k)] == pytest.approx(want)
            own = np.take_along_axis(votes, s.query.labels[:, None], axis=1)
            want = ((own > 0) & ((votes > own).sum(1, keepdims=True) < 5)).mean()
            assert parts[name + "_top5"][str(k)] == pytest.approx(want)
    assert protocol["k"] == [1, 5, 20] and protocol["temperature"] == 0.1


def test_linear_probe_is_chosen_on_train_alone():
    s = subject()
    parts, protocol = tasks.linear(s)
    assert parts["linear"].keys() == {"top-1", "learning_rate", "weight_decay"}
    assert "top-5" in tasks.linear(subject(classes=6))[0]["linear"]
    assert parts["linear"]["top-1"] > 0.9
    wrong = s._replace(query=s.query._replace(labels=(s.query.labels + 1) % 4))
    other, again = tasks.linear(wrong)
    assert again == protocol
    for key in ("learning_rate", "weight_decay"):
        assert other["linear"][key] == parts["linear"][key]


def test_collapse_is_said():
    s = subject()
    healthy, _ = tasks.label_free(s)
    assert "warnings" not in healthy
    constant = np.tile(s.query.embedding[:1], (80, 1))
    parts, _ = tasks.label_free(s._replace(query=s.query._replace(embedding=constant)))
    assert "has collapsed" in parts["warnings"][0]


def test_classes_not_in_train_are_left_to_retrieval():
    s = subject()
    unseen = Dataset(
        "arrays",
        "birds",
        s.dataset.train,
        Split(s.dataset.test.images, s.query.labels + 10),
    )
    assert refused_tasks(unseen, s.run.config).keys() == {"knn", "linear"}
    with pytest.raises(UserError, match="do not occur in train"):
        tasks.knn(s._replace(dataset=unseen))


FOUR = [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("train", "test", "judged", "refused"),
    [
        (FOUR, FOUR, "test", set()),
        (FOUR, None, "train", {"linear"}),
        (FOUR, "none", "train", {"linear"}),
        (FOUR, [-1, -1, -1], "train", {"linear"}),
        ("none", None, "train", {"knn", "linear", "retrieval"}),
        ("none", "none", "test", {"knn", "linear", "retrieval"}),
        ("none", FOUR, "test", {"knn", "linear"}),
        ([-1, -1, 0, 1], [0, -1], "test", {"linear", "retrieval"}),
        (FOUR, [0, 0, 7], "test", set()),
        (FOUR, [7, 8, 8], "test", {"knn", "linear"}),
        ([0, 0, 0], [0, 0], "test", {"knn", "linear", "retrieval"}),
        ([0, 0, 0], [0, 0, 1], "test", {"knn", "linear"}),
        ([0, 0, 0], None, "train", {"knn", "linear", "retrieval"}),
        ([0, 1, 1], [0, 1, 1], "test", {"linear"}),
        ([0, 1, 2], None, "train", {"knn", "linear"}),
        ([0, 1, 2], [0, 1, 2], "test", {"linear"}),
        ([0], None, "train", {"knn", "linear", "retrieval", "health"}),
        ([0, 1], [0], "test", {"linear", "retrieval", "health"}),
    ],
)
def test_what_the_data_allows(train, test, judged, refused):
    """Labels, none; a test split, none; classes that are not in both; few images."""
    dataset = data(train, test)
    found = refused_tasks(dataset, settings())
    assert judged_split(dataset) == judged and found.keys() == refused
    assert all("\n" not in why and len(why) > 20 for why in found.values())
    lines = remarks(dataset, settings())
    assert any("no labelled test images" in line for line in lines) == (
        judged == "train" and train != "none"
    )


def test_who_is_asked_and_who_votes():
    """Not those of whose class nobody else votes; within train not one's own row."""
    found = votes(data([3, 3, -1, 4, 5], [3, 9, -1, 5]))
    assert found.asked.tolist() == [0, 3] and found.voters.tolist() == [0, 1, 3, 4]
    assert found.own is None and found.most == 4
    found = votes(data([3, 3, -1, 4, 3, 5, 5]))
    assert found.voters.tolist() == [0, 1, 3, 4, 5, 6]
    assert found.asked.tolist() == [0, 1, 4, 5, 6]
    assert found.own.tolist() == [0, 1, 3, 4, 5] and found.most == 5


def test_k_larger_than_what_there_is_are_left_out_and_named():
    dataset = data([0, 0, 1, 1, 1], [0, 0, 1])
    config = settings(knn=(1, 5, 200), retrieval=(1, 2, 8))
    assert refused_tasks(dataset, config).keys() == set()
    lines = remarks(dataset, config)
    assert "without k=200 of knn.k: there are 5 labelled train images" in lines[0]
    assert "(--config.knn.k=1,5)" in lines[0]
    assert "without k=8 of retrieval.k: there are 2 other test images" in lines[1]
    refused = refused_tasks(dataset, settings(knn=(6, 7), retrieval=(3, 4)))
    assert refused.keys() == {"knn", "retrieval"}
    assert "knn.k=6,7 asks for more than the 5" in refused["knn"]
    assert "use --config.retrieval.k=2" in refused["retrieval"]
    within = remarks(data([0, 0, 1, 1, 1]), settings(knn=(1, 5)))
    assert "without k=5 of knn.k: there are 4" in within[1]


def test_rows_alone_in_their_class_are_counted():
    def said(train, test=None):
        return "\n".join(remarks(data(train, test), settings()))

    words = said(FOUR, [0, 0, 1])
    assert "1 test image is alone in its class: a miss of R@K" in words
    assert "no class has two test images: R@K is 0" in said(FOUR, [0, 1])
    words = said([0, 0, 1, 2])
    assert "2 train images are alone in their class: left out of kNN" in words
    words = said([0, 0, 0])
    assert "no labelled test images: train is judged" in words
    words = said([0, 1, 2])
    assert "no labelled test images: retrieval is within train" in words
    words = remarks(data(FOUR, [0, 1]), settings(retrieval=(1, 2)))[0]
    assert "there is 1 other test image (--config.retrieval.k=1)" in words


@pytest.mark.parametrize("count", [2, 7])
def test_no_mean_is_taken_over_nothing(count):
    rows, _ = clusters(count=count)
    scores = retrieval_scores(rows, np.arange(count), k=(1,))
    assert scores["MAP@R"] is None and scores["R-precision"] is None
    assert scores["NMI"] is None  # 1 of any embedding
    assert scores["R@1"] == 0 and accuracies({"retrieval": scores}).keys() == {
        "retrieval.R@1"
    }


def within_train():
    """Return the subject without its test split, some labels unknown or alone."""
    s = subject()
    labels = s.gallery.labels.copy()
    labels[::7] = -1
    labels[1] = 99
    images = np.zeros((400, 1, 1, 3), np.uint8)
    whole = s.gallery._replace(labels=labels, images=images)
    dataset = Dataset("arrays", "mine", Split(images, labels), None)
    gallery = whole.take(np.flatnonzero(labels >= 0))
    return s._replace(dataset=dataset, query=whole, gallery=gallery)


def test_within_train_each_is_left_out_of_its_own_votes():
    """Against scikit-learn, that leaves a row out of its neighbours likewise."""
    from sklearn.neighbors import NearestNeighbors

    s = within_train()
    parts, protocol = tasks.knn(s)
    known = np.flatnonzero(s.query.labels >= 0)
    labels = s.query.labels[known]
    for name, rows in (
        ("knn", s.query.embedding[known]),
        ("knn_bank", s.run.state.memory["bank"][known]),
    ):
        search = NearestNeighbors(algorithm="brute", metric="cosine").fit(rows)
        asked = s.query.embedding[known].astype(np.float64)
        distance, index = search.kneighbors(asked, 6)
        for k in (1, 5):
            right = []
            for row in np.flatnonzero(labels != 99):
                others = index[row][index[row] != row][:k]
                weight = np.exp((1 - distance[row][index[row] != row][:k]) / 0.1)
                votes_of = np.bincount(labels[others], weight, 100)
                right.append(votes_of.argmax() == labels[row])
            assert parts[name][str(k)] == pytest.approx(np.mean(right), abs=0.003)
    assert protocol["query"] == "train" and "without the query" in protocol["gallery"]
    scores, protocol = tasks.retrieval(s)
    assert scores["retrieval"] == retrieval_scores(s.query.embedding[known], labels)
    assert protocol["gallery"] == "train, without the query"
    parts, protocol = tasks.label_free(s)
    assert parts["health"]["rows"] == 400 and "train images" in protocol["rows"]
    with pytest.raises(UserError, match=r"data\.held_out"):
        tasks.linear(s)


def test_test_images_of_other_classes_are_no_misses():
    """KNN and linear probe are as without them, and the protocol counts them."""
    s = subject()
    before = tasks.knn(s)[0], tasks.linear(s)[0]
    labels = np.r_[s.query.labels, [50] * 9].astype(np.int32)
    more = np.tile(s.query.embedding[:1], (9, 1))
    query = tasks.Embedded(
        np.zeros((89, 1, 1, 3), np.uint8),
        labels,
        np.r_[s.query.embedding, more],
        np.r_[s.query.feature, more],
    )
    dataset = Dataset("arrays", "mine", s.dataset.train, Split(query.images, labels))
    wider = s._replace(query=query, dataset=dataset)
    assert (tasks.knn(wider)[0], tasks.linear(wider)[0]) == before
    shared = tasks.shared_protocol(dataset, s.run.config)
    assert shared["data"]["test_images_of_classes_not_in_train"] == 9
    shared = tasks.shared_protocol(s.dataset, s.run.config)
    assert "test_images_of_classes_not_in_train" not in shared["data"]


# A number is only as good as its protocol. Whoever changes a default must see it here.
DEFAULT_HASHES = {
    "knn": "b1d71f7da826",
    "linear": "7b1e57d8f8c2",
    "retrieval": "430053b27b2e",
    "health": "8d1a5375596a",
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


def merged(record, path):
    return with_other_tasks(record, read_before(record, path))


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
    assert merged(now, path) == now  # there is none before
    path.write_text(json.dumps(before))
    kept = merged(now, path)
    assert kept == before | now | {"protocol": before["protocol"] | now["protocol"]}
    # What a task finds anew replaces all that it found before.
    anew = {"step": 7, "checkpoint": "abc", "knn": {"1": 0.6}, "health": {}}
    anew["protocol"] = shared | {"knn": {"hash": "4"}, "health": {"hash": "5"}}
    assert merged(anew, path) == anew
    # Of another checkpoint or other data nothing is kept, nor of no evaluation.
    for key, value in (("checkpoint", "abd"), ("protocol", shared | {"data": {}})):
        assert merged(now | {key: value}, path) == now | {key: value}


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"checkpoint": "abc"}'])
def test_a_damaged_evaluation_is_said_and_replaced(tmp_path, text, capsys):
    (tmp_path / "e.json").write_text(text)
    now = {"checkpoint": "abc", "protocol": {"data": {}, "transform": ""}}
    assert merged(now, tmp_path / "e.json") == now
    said = "is no evaluation" in capsys.readouterr().out
    assert said == (text != "{}")  # one of another checkpoint is just replaced
