import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import make_blobs

from eir_jax.figures import curves, tsne
from eir_jax.system.errors import UserError


def blobs(rows=150, classes=3):
    x, label = make_blobs(rows, 16, centers=classes, cluster_std=2.0, random_state=0)
    return x.astype(np.float32), label


def pixels(path):
    with Image.open(path) as image:
        image.verify()
    return np.asarray(Image.open(path).convert("RGB"))


def share_of(image, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(image.astype(int) - wanted).max(axis=-1) < 40).mean()


def write_lines(path, records, tail=""):
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    return path


def log(step, **numbers):
    return {"step": step, "epoch": step / 10, **numbers}


def test_tsne_keeps_classes_apart_and_is_deterministic():
    x, label = blobs()
    points = tsne.tsne_coordinates(x)
    centre = np.stack([points[label == c].mean(axis=0) for c in range(3)])
    distance = np.linalg.norm(points[:, None] - centre, axis=-1)
    assert (distance.argmin(axis=1) == label).all()
    np.testing.assert_array_equal(tsne.tsne_coordinates(x), points)


def test_tsne_compares_directions(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "sklearn.manifold.TSNE.fit_transform", lambda _, x: seen.append(x)
    )
    x, _ = blobs()
    tsne.tsne_coordinates(x)
    tsne.tsne_coordinates(x * np.linspace(1, 9, len(x))[:, None])
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-6)


def test_tsne_of_few_or_equal_rows():
    for rows in (3, 5):
        assert np.isfinite(tsne.tsne_coordinates(blobs()[0][:rows])).all()
    assert np.isfinite(tsne.tsne_coordinates(np.ones((40, 8)))).all()
    for bad in (np.ones((2, 8)), np.ones((9, 1)), np.zeros((9, 8))):
        with pytest.raises(UserError):
            tsne.tsne_coordinates(bad)
    with pytest.raises(UserError, match="NaN"):
        tsne.tsne_coordinates(np.full((9, 8), np.nan))


def placed_by_first_two(embedding, **_):
    return np.asarray(embedding)[:, :2]


def test_draws_tsne_with_legend(tmp_path):
    x, label = blobs(300)
    label[:40] = -1
    path = tmp_path / "new" / "tsne.png"
    tsne.draw_tsne(x, label, path, class_names=["ant_$x$", "_bee", "c" * 60])
    first = path.read_bytes()
    image = pixels(path)
    assert 800 < image.shape[0] < image.shape[1] < 1300
    for colour in (*curves.COLOURS[:3], tsne.UNKNOWN):
        assert share_of(image, colour) > 1e-4
    tsne.draw_tsne(x, label, path, class_names=["ant_$x$", "_bee", "c" * 60])
    assert path.read_bytes() == first
    assert [x.name for x in path.parent.iterdir()] == ["tsne.png"]


def test_tsne_samples_by_the_seed(tmp_path, monkeypatch):
    seen = []

    def place(embedding, **_):
        seen.append(embedding)
        return embedding[:, :2]

    monkeypatch.setattr(tsne, "tsne_coordinates", place)
    x, label = blobs(500)
    for seed in (0, 0, 1):
        tsne.draw_tsne(x, label, tmp_path / "a.png", max_points=100, seed=seed)
    assert seen[0].shape == (100, 16) and len(np.unique(seen[0], axis=0)) == 100
    np.testing.assert_array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


@pytest.mark.parametrize("classes", [0, 1, 20, 60])
def test_tsne_of_any_number_of_classes(tmp_path, monkeypatch, classes):
    monkeypatch.setattr(tsne, "tsne_coordinates", placed_by_first_two)
    x, _ = blobs(240)
    label = np.arange(240) % classes if classes else None
    tsne.draw_tsne(x, label, tmp_path / "a.png")
    image = pixels(tmp_path / "a.png")
    assert (image.shape[1] > image.shape[0]) == (classes in (1, 20))
    assert image.std() > 5


def test_reads_what_a_run_wrote(tmp_path):
    records = [
        log(10, loss=4.0, rank_me=9.0, health={"uniformity": -1.0}),
        log(20, loss=float("nan"), rank_me=8.0),
        log(20, knn={"5": 0.5, "200": 0.6}),
        log(30, loss=2.0, flag=True, note="words"),
    ]
    file = write_lines(tmp_path / "m.jsonl", records, '[1]\n{"step": 40, "loss": 1')
    axis, found = curves.read_curves(file)
    expected = {
        "loss": ([1, 3], [4, 2]),
        "rank_me": ([1, 2], [9, 8]),
        "health/uniformity": ([1], [-1]),
        "knn/5": ([2], [0.5]),
        "knn/200": ([2], [0.6]),
    }
    assert axis == "epoch" and found.keys() == expected.keys()
    for name, (x, value) in expected.items():
        np.testing.assert_allclose(found[name], [x, value])


def test_reads_steps_where_there_are_no_epochs(tmp_path):
    file = write_lines(tmp_path / "m.jsonl", [{"step": 5, "loss": 1}])
    axis, found = curves.read_curves(file)
    assert axis == "step" and found["loss"][0].tolist() == [5]


@pytest.mark.parametrize("text", [None, "", '{"step": 1, "lo', "3\n", '{"step": 1}'])
def test_no_metrics_is_the_users_error(tmp_path, text):
    file = tmp_path / "m.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"m\.jsonl"):
        curves.draw_training_curves(file, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_draws_a_panel_for_each_kind_of_number(tmp_path):
    size = {}
    rates = {"learning_rate": 0.1, "images_per_second": 90.0}
    for name, more in {
        "one": {},
        "three": rates,
        "five": rates | {"a": 1, "b": 2},
    }.items():
        records = [log(s, loss=50 / s, loss_inter=1 / s, **more) for s in range(1, 90)]
        file = write_lines(tmp_path / "m.jsonl", records)
        curves.draw_training_curves(file, tmp_path / "a.png")
        image = pixels(tmp_path / "a.png")
        assert share_of(image, curves.COLOURS[1]) > 1e-4
        size[name] = np.array(image.shape[:2])
    rows_columns = {name: (s / size["one"]).tolist() for name, s in size.items()}
    assert rows_columns == {"one": [1, 1], "three": [2, 2], "five": [3, 2]}


def test_draws_a_run_while_it_trains(tmp_path):
    records = [log(0, loss=1.0), log(0, knn={"5": 0.0}), log(0, images_per_second=0.0)]
    curves.draw_training_curves(
        write_lines(tmp_path / "m.jsonl", records), tmp_path / "a.png"
    )
    assert pixels(tmp_path / "a.png").std() > 5


def test_running_mean():
    value = np.random.default_rng(0).normal(size=230)
    smooth = curves.running_mean(value)
    expected = [value[max(i - 4, 0) : i + 5].mean() for i in range(230)]
    np.testing.assert_allclose(smooth, expected)
    np.testing.assert_array_equal(curves.running_mean(value[:40]), value[:40])


def runs():
    kinds = {"mixup": 0.0, "cutmix": 0.01}
    return [
        {"alpha": a, "seed": s, "kind": kind, "knn": 0.8 + more + 0.001 * s}
        for a in (2, 0.1, 1.0)
        for s in range(3)
        for kind, more in kinds.items()
    ]


def test_coefficient_means():
    rows = [*runs(), {"alpha": 5, "kind": "mixup", "knn": 0.5}, {"alpha": 3}, {}]
    found = curves.coefficient_means(rows, x="alpha", y="knn", group="kind")
    assert list(found) == ["mixup", "cutmix"]
    at, mean, deviation, count = found["mixup"]
    np.testing.assert_allclose(at, [0.1, 1, 2, 5])
    np.testing.assert_allclose(mean, [0.801, 0.801, 0.801, 0.5])
    np.testing.assert_allclose(deviation, [0.001, 0.001, 0.001, 0], atol=1e-12)
    assert count.tolist() == [3, 3, 3, 1]
    (only,) = curves.coefficient_means(rows, x="alpha", y="knn").values()
    assert only[3].tolist() == [6, 6, 6, 1]
    with pytest.raises(UserError, match="knm"):
        curves.coefficient_means(rows, x="alpha", y="knm")


@pytest.mark.parametrize("group", [None, "kind"])
def test_draws_coefficients(tmp_path, group):
    path = tmp_path / "new" / "fig3.png"
    curves.draw_coefficient_curves(
        runs(), path, x="alpha", y="knn", group=group, baseline=0.79, xlabel="$\\alpha$"
    )
    image = pixels(path)
    assert 500 < image.shape[0] < image.shape[1] < 900
    assert share_of(image, curves.COLOURS[0]) > 1e-3
    assert (share_of(image, curves.COLOURS[1]) > 1e-3) == (group is not None)
    # The dashed line crosses the whole picture: a row of which half is dark.
    assert ((image < 90).all(axis=-1).mean(axis=1) > 0.4).any()


@pytest.mark.parametrize("least", [0, 1])
def test_wide_scales_keep_their_values_apart(tmp_path, monkeypatch, least):
    drawn = []
    monkeypatch.setattr(curves, "write_png", lambda figure, path: drawn.append(figure))
    values = (least, 2, 15, 150)
    rows = [{"alpha": float(a), "knn": 0.5} for a in values]
    curves.draw_coefficient_curves(rows, tmp_path / "a.png", x="alpha", y="knn")
    (axes,) = drawn[0].axes
    assert [t.get_text() for t in axes.get_xticklabels()] == [f"{a}" for a in values]
    at = axes.transData.transform([(a, 0.5) for a in values])[:, 0]
    width = axes.bbox.width
    assert np.diff(at).min() > 0.1 * width
    assert axes.bbox.x0 <= at[0] < axes.bbox.x0 + 0.15 * width


def test_unwritable_output(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        curves.draw_coefficient_curves(
            runs(), tmp_path / "file" / "a.png", x="alpha", y="knn"
        )
