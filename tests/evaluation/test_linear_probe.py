"""The linear probe against NumPy and scikit-learn, and what it may not see."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from eir_jax.evaluation import linear_probe as probe
from eir_jax.evaluation.classifiers import ProbeSettings
from eir_jax.evaluation.linear_probe import linear_probe
from eir_jax.system import sharding
from eir_jax.system.errors import UserError

SHORT = ProbeSettings(
    learning_rates=(0.01, 0.1), weight_decays=(0.0, 0.01), num_epochs=5, batch_size=32
)


def clouds(n, classes=3, dim=5, distance=1.0, seed=0, first=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim)) * distance
    label = np.arange(n) % classes
    feature = 3 + 2 * (centres[label] + rng.normal(size=(n, dim)))
    return feature.astype(np.float32), label + first


def fit(feature, label, grid, settings, **kwargs):
    mesh = kwargs.pop("mesh", None) or sharding.make_mesh(jax.devices()[:1])
    rows = kwargs.pop("rows", np.arange(len(label)))
    label = label.astype(np.int32)
    return probe.fit(feature, label, rows, grid, settings=settings, mesh=mesh, **kwargs)


def numpy_sgd(x, label, rows, rate, decay, s):
    """One setting in float64, by hand: features already standardised."""
    weight = np.zeros((label.max() + 1, x.shape[1]))
    bias = np.zeros(len(weight))
    speed = [np.zeros_like(weight), np.zeros_like(bias)]
    for epoch in range(s.num_epochs):
        order = np.random.default_rng((s.seed, epoch)).permutation(rows)
        now = rate * 0.1 ** sum(epoch >= m * s.num_epochs for m in s.milestones)
        for start in range(0, len(rows) - s.batch_size + 1, s.batch_size):
            batch = order[start : start + s.batch_size]
            logits = x[batch] @ weight.T + bias[None]
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(batch)), label[batch]] -= 1
            speed[0] = s.momentum * speed[0] + p.T @ x[batch] / len(batch)
            speed[0] = speed[0] + decay * weight
            speed[1] = s.momentum * speed[1] + p.mean(0)
            weight, bias = weight - now * speed[0], bias - now * speed[1]
    return weight, bias


def test_sgd_equals_float64_by_hand():
    feature, label = clouds(75)
    s = dataclasses.replace(SHORT, seed=3)  # drops 75 % 32 rows; both milestones pass
    got = fit(feature, label, [(0.1, 0.01)], s)
    x = feature.astype(np.float64)
    x = (x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)
    weight, bias = numpy_sgd(x, label, np.arange(75), 0.1, 0.01, s)
    np.testing.assert_allclose(got.weight[0], weight, atol=1e-6)
    np.testing.assert_allclose(got.bias[0], bias, atol=1e-6)


def test_swept_setting_equals_it_trained_alone():
    feature, label = clouds(100)
    grid = [(0.01, 0.0), (0.1, 0.01), (1.0, 0.001)]
    together = fit(feature, label, grid, SHORT)
    for i, setting in enumerate(grid):
        alone = fit(feature, label, [setting], SHORT)
        np.testing.assert_allclose(together.weight[i], alone.weight[0], atol=1e-5)
        np.testing.assert_allclose(together.bias[i], alone.bias[0], atol=1e-5)


def test_eight_devices_equal_one():
    feature, label = clouds(100)
    one = fit(feature, label, [(0.1, 0.01)], SHORT)
    eight = fit(feature, label, [(0.1, 0.01)], SHORT, mesh=sharding.make_mesh())
    np.testing.assert_allclose(one.weight, eight.weight, atol=1e-5)


def test_lbfgs_equals_scikit_learn():
    feature, label = clouds(300, distance=0.5)
    s = ProbeSettings(solver="lbfgs", standardize=True)
    decays = (0.1, 0.003)
    got = fit(feature, label, [(None, d) for d in decays], s)
    assert got.converged.all()
    x = (feature - got.mean[None]) * got.scale[None]
    for i, decay in enumerate(decays):
        other = LogisticRegression(C=1 / (300 * decay), tol=1e-8, max_iter=1000)
        other.fit(x.astype(np.float64), label)
        np.testing.assert_allclose(got.weight[i], other.coef_, atol=1e-3)
        logits = x @ got.weight[i].T + got.bias[i][None]
        p = np.asarray(jax.nn.softmax(logits))
        np.testing.assert_allclose(p, other.predict_proba(x), atol=1e-3)


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_separable_data_are_named_right(solver):
    train, test = (
        clouds(120, distance=9, first=4),
        clouds(60, distance=9, seed=1, first=4),
    )
    calls = []
    s = dataclasses.replace(SHORT, solver=solver)
    result = linear_probe(*train, *test, s, progress=lambda *x: calls.append(x))
    assert (result.top1, result.top5) == (1, 1)
    assert list(result.classes) == [4, 5, 6]
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]
    json.dumps(result.protocol)
    if solver == "sgd":  # of equals: the smaller rate, then the smaller decay
        best = max(x.held_out_accuracy for x in result.sweep)
        first = next(x for x in result.sweep if x.held_out_accuracy == best)
        assert (result.learning_rate, result.weight_decay) == first[:2]
        assert len(result.sweep) == 4


def test_random_labels_reach_chance():
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(4000, 5)).astype(np.float32)
    label = rng.integers(0, 4, 4000)
    half = slice(2000), slice(2000, 4000)
    result = linear_probe(
        feature[half[0]], label[half[0]], feature[half[1]], label[half[1]], SHORT
    )
    assert abs(result.top1 - 0.25) < 0.05  # 5 standard deviations
    assert result.top5 == 1  # among 4 classes


def test_test_labels_decide_nothing_but_the_accuracy():
    (feature, label), (test_feature, test_label) = clouds(90), clouds(60, seed=1)
    results = [
        linear_probe(feature, label, test_feature, y, SHORT)
        for y in (test_label, np.random.default_rng(0).permutation(test_label))
    ]
    assert results[0].top1 != results[1].top1
    for field in ("learning_rate", "weight_decay", "sweep", "protocol"):
        assert getattr(results[0], field) == getattr(results[1], field)
    jax.tree.map(np.testing.assert_array_equal, *[r.classifier for r in results])


def test_held_out_split_is_stratified_disjoint_and_fixed():
    label = np.repeat([7, 2, 5], [100, 40, 2])
    fitted, held = probe.split_held_out(label, 0.1, seed=0)
    assert sorted([*fitted, *held]) == list(range(142))
    counts = np.unique(label[held], return_counts=True)
    np.testing.assert_array_equal(counts, ([2, 5, 7], [4, 1, 10]))
    np.testing.assert_array_equal(held, probe.split_held_out(label, 0.1, 0)[1])
    assert set(held) != set(probe.split_held_out(label, 0.1, 1)[1])
    # Even a share near one leaves an image of each class to train on.
    assert set(label[probe.split_held_out(label, 0.99, 0)[0]]) == {2, 5, 7}


def test_top1_and_top5_equal_numpy():
    rng = np.random.default_rng(0)
    x, label = rng.integers(-2, 3, (500, 4)), rng.integers(0, 8, 500)
    weight, bias = rng.integers(-1, 2, (3, 8, 4)), rng.integers(-1, 2, (3, 8))
    floats = [a.astype(np.float32) for a in (weight, bias, np.zeros(4), np.ones(4))]
    classifiers = probe.Classifiers(*floats, np.ones(3, bool))
    got = probe.accuracy(classifiers, x.astype(np.float32), label, block=200)
    for s in range(3):
        order = np.argsort(-(x @ weight[s].T + bias[s][None]), axis=1, kind="stable")
        hit = order == label[:, None]
        np.testing.assert_allclose(
            got[:, s], [hit[:, :1].sum() / 500, hit[:, :5].sum() / 500]
        )


def test_diverged_settings_lose_and_alone_end_in_words():
    (feature, label), test = clouds(90), clouds(60, seed=1)
    s = dataclasses.replace(SHORT, learning_rates=(0.1, 1e30), weight_decays=(1.0,))
    result = linear_probe(feature, label, *test, s)
    assert result.learning_rate == 0.1
    assert result.sweep[1].held_out_accuracy == 0
    with pytest.raises(UserError, match="diverged: lower learning_rates"):
        linear_probe(
            feature, label, *test, dataclasses.replace(s, learning_rates=(1e30,))
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rates": ()}, "must be some > 0"),
        ({"weight_decays": ()}, "must be some >= 0"),
        ({"momentum": 1.0}, "must be in"),
        ({"tolerance": 0.0}, "must be > 0"),
        ({"seed": -1}, "must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(change, words):
    (feature, label), test = clouds(90), clouds(60, seed=1)
    with pytest.raises(UserError, match=words):
        linear_probe(feature, label, *test, dataclasses.replace(SHORT, **change))


def test_constant_features_are_left_out():
    (feature, label), (test_feature, test_label) = clouds(90), clouds(60, seed=1)
    plain = linear_probe(feature, label, test_feature, test_label, SHORT)
    wider = linear_probe(
        np.pad(feature, ((0, 0), (0, 1)), constant_values=0.1),
        label,
        np.pad(test_feature, ((0, 0), (0, 1)), constant_values=9),
        test_label,
        SHORT,
    )
    assert wider.top1 == plain.top1
    assert wider.classifier.scale[-1] == 0


def test_epoch_features_are_trained_on():
    (feature, label), test = clouds(90), clouds(60, seed=1)
    asked = []

    def same(epoch):
        asked.append(epoch)
        return feature

    plain = linear_probe(feature, label, *test, SHORT)
    again = linear_probe(feature, label, *test, SHORT, epoch_features=same)
    assert asked == [*range(5), *range(5)]
    np.testing.assert_array_equal(plain.classifier.weight, again.classifier.weight)
    assert plain.protocol != again.protocol
    other = linear_probe(
        feature, label, *test, SHORT, epoch_features=lambda e: feature + 0.1 * e
    )
    assert np.abs(other.classifier.weight - plain.classifier.weight).max() > 1e-4
    with pytest.raises(UserError, match="same images in the same order"):
        linear_probe(feature, label, *test, SHORT, epoch_features=lambda e: feature[1:])


def changed(i, change):
    arguments = [*clouds(30), *clouds(12, seed=1)]
    arguments[i] = change(arguments[i].copy())
    return arguments


def put(value, *at):
    def change(x):
        x[at] = value
        return x

    return change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(1, lambda y: y[1:]), "30 train features but labels of shape"),
        (changed(3, lambda y: y[1:]), "12 test features but labels of shape"),
        (changed(1, put(-1, 4)), "1 of 30 train labels are negative"),
        (changed(1, lambda y: y * 1.0), "labels are float64: the probe needs integers"),
        (changed(1, lambda y: y * 0), "class 0 alone: a probe needs two classes"),
        (changed(0, put(np.nan, 3, 2)), "1 of 30 rows of train features hold NaN"),
        (changed(2, put(np.inf, 3, 2)), "1 of 12 rows of test features hold NaN"),
        (changed(1, put(9, 0)), "class 9 has 1 train image"),
        (changed(3, put(9, 0)), "unseen classes cannot be probed"),
        (changed(2, lambda x: x[:, 1:]), "differ in dimension"),
        (changed(0, lambda x: x[:0]), "must be .* and not empty"),
    ],
)
def test_errors_name_the_thing(arguments, message):
    with pytest.raises(UserError, match=message):
        linear_probe(*arguments, SHORT)


def test_settings_out_of_range_are_named_together():
    s = ProbeSettings(solver="adam", held_out=1.0, num_epochs=0)
    with pytest.raises(UserError, match=r"solver='adam'.*held_out=1.*num_epochs"):
        linear_probe(*clouds(30), *clouds(12), s)
    with pytest.raises(UserError, match="augmented features need solver='sgd'"):
        linear_probe(
            *clouds(30),
            *clouds(12),
            ProbeSettings(solver="lbfgs"),
            epoch_features=lambda e: None,
        )
