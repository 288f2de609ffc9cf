"""Data of which a part is not there: trained, evaluated as far as it goes, and said.

By the commands' own functions, with an encoder that takes no time. Where training is
not asked about, all share one encoder, of the same training images.
"""

import json

import numpy as np
import pytest
from PIL import Image
from small import TINY

from eir_jax.evaluate import main as evaluate
from eir_jax.inspect import main as look
from eir_jax.main import main as train
from eir_jax.system.config import override
from eir_jax.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")
CLASSES = np.repeat(np.arange(3), 4)


def noise(count):
    """Return 8-pixel images, the same ones whatever their labels."""
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def save(folder, source, **splits):
    """Write splits, {name: (labels, whether they are told)}; return the settings."""
    if source == "arrays":
        arrays = {}
        for split, (labels, told) in splits.items():
            arrays[f"{split}_images"] = noise(len(labels))
            if told:
                arrays[f"{split}_labels"] = np.asarray(labels)
        np.savez(folder / "a.npz", **arrays)
        return ["--config.data.source=arrays", f"--config.data.path={folder / 'a.npz'}"]
    for split, (labels, told) in splits.items():
        for number, (image, label) in enumerate(
            zip(noise(len(labels)), labels, strict=True)
        ):
            place = folder / "data" / (split if "test" in splits else "")
            place = place / f"日本 {label}" if told else place  # no font has it all
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:02}.png")
    return ["--config.data.source=folder", f"--config.data.path={folder / 'data'}"]


def trained(folder, *words):
    (folder / "config.py").write_text(TINY)
    words = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}", *words]
    assert train(words) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def restored(tmp_path_factory, one_device):
    """Return the run of an untrained encoder on the images of CLASSES."""
    from eir_jax.evaluation.restore import restore_run

    folder = tmp_path_factory.mktemp("restored")
    return restore_run(trained(folder, *save(folder, "arrays", train=(CLASSES, True))))


@pytest.fixture
def judge(restored, monkeypatch, tmp_path):
    """Return a function that evaluates that run on other words' data."""
    from eir_jax.evaluation import restore

    workdir = tmp_path / "run"

    def judge(words, *more):
        def restore_run(*_):
            config = restored.config.copy_and_resolve_references()
            override(config, words)
            return restored._replace(config=config)

        monkeypatch.setattr(restore, "restore_run", restore_run)
        assert evaluate([f"--workdir={workdir}", *more]) == 0
        return record_of(workdir)

    return judge


def record_of(workdir):
    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    (file,) = (workdir / "eval").iterdir()
    return json.loads(file.read_text(), parse_constant=refuse)


ALL = {"knn", "linear", "retrieval", "health"}


@pytest.mark.parametrize(
    ("source", "train_told", "test_told", "judged", "without"),
    [
        ("folder", True, True, "test", set()),
        ("folder", True, None, "train", {"linear"}),
        ("arrays", True, None, "train", {"linear"}),
        ("arrays", True, False, "train", {"linear"}),
        ("folder", False, None, "train", {"knn", "linear", "retrieval"}),
        ("arrays", False, None, "train", {"knn", "linear", "retrieval"}),
        ("folder", False, False, "test", {"knn", "linear", "retrieval"}),
        ("folder", False, True, "test", {"knn", "linear"}),
    ],
)
def test_what_there_is_is_judged(
    tmp_path, capsys, judge, source, train_told, test_told, judged, without
):
    splits = {"train": (CLASSES, train_told)}
    if test_told is not None:
        splits["test"] = (CLASSES[:9], test_told)
    record = judge(save(tmp_path, source, **splits))
    out = capsys.readouterr().out
    assert record.keys() & ALL == ALL - without
    assert record["refused"].keys() == without
    titles = {"knn": "kNN", "linear": "linear probe", "retrieval": "retrieval"}
    for task in without:
        (line,) = [
            x for x in out.splitlines() if x.startswith(f"without {titles[task]}")
        ]
        assert record["refused"][task] in line
    number = {"train": 12, "test": 9}[judged]
    assert record["health"]["rows"] == number
    assert f"{judged} images" in record["protocol"]["health"]["rows"]
    for task in {"knn", "retrieval"} - without:
        assert record["protocol"][task]["query"] == judged
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"Nearest neighbours in the {judged} set" in report and "t-SNE" in report
    assert "without k=20,200 of knn.k" in report or "knn" in without


def test_while_training_the_same_numbers_are_noted(tmp_path, capsys):
    """Within train; by the protocol, and so the hash, of evaluate."""
    words = ["--config.num_epochs=1", "--config.knn.k=1,5,200"]
    workdir = trained(
        tmp_path, *words, *save(tmp_path, "folder", train=(CLASSES, True))
    )
    out = capsys.readouterr().out
    assert "without k=200 of knn.k: there are 11 labelled train images" in out
    assert "RankMe" in out and "of 12 train images" in out
    assert evaluate([f"--workdir={workdir}", "--tasks=knn,retrieval"]) == 0
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (noted,) = [r for r in map(json.loads, lines) if "knn" in r]
    record = record_of(workdir)
    assert noted["knn"] == record["knn"] and noted["knn"].keys() == {"1", "5"}
    assert noted["protocol"] == record["protocol"]["knn"]["hash"]


def test_what_has_no_labels_trains(tmp_path, capsys):
    words = ["--config.num_epochs=1", *save(tmp_path, "arrays", train=(CLASSES, False))]
    trained(tmp_path, *words)
    out = capsys.readouterr().out
    assert "tiny has no test images: train is judged" in out
    assert "epoch 1: RankMe" in out


def test_a_share_held_out_is_the_test_split(tmp_path):
    words = save(tmp_path, "folder", train=(np.arange(40) % 2, True))
    workdir = trained(tmp_path, "--config.data.held_out=0.25", *words)
    assert evaluate([f"--workdir={workdir}"]) == 0
    record = record_of(workdir)
    assert record.keys() >= ALL and record["refused"] == {}
    data = record["protocol"]["data"]
    assert (data["train_images"], data["test_images"]) == (30, 10)
    assert data["held_out"] == "0.25 of each class of train, by seed 0"
    lines = (workdir / "pictures.jsonl").read_text().splitlines()
    assert [json.loads(line)[0] for line in lines].count("test") == 10


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "without", "said"),
    [
        (CLASSES, [0, 1, 2, 7, 7], set(), "test classes not in train: 7, 2 images"),
        ([9, *CLASSES[1:]], CLASSES, {"linear"}, "class 9 has 1 train image"),
        (
            CLASSES,
            np.arange(9),
            {"linear"} - {"linear"},
            "no class has two test images",
        ),
        (CLASSES, [5, 5, 6], {"knn", "linear"}, "do not occur in train"),
        (CLASSES, [1], {"retrieval", "health"}, "are all of one class"),
        (
            np.zeros(12, int),
            [0, 0, 1, 1],
            {"knn", "linear"},
            "there is nothing to tell apart",
        ),
    ],
)
def test_one_task_that_cannot_run_costs_no_other(
    tmp_path, capsys, judge, train_labels, test_labels, without, said
):
    """And asked for by name it ends with status 2, after the others are written."""
    splits = {"train": (train_labels, True), "test": (test_labels, True)}
    words, workdir = save(tmp_path, "arrays", **splits), tmp_path / "run"
    record = judge(words)
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert record.keys() & ALL == ALL - without == ALL - record["refused"].keys()
    assert any(said in x for x in (*record["notes"], *record["refused"].values()))
    assert said in (workdir / "report.html").read_text()
    if not without:
        return
    (workdir / "eval" / "step_0.json").unlink()
    refused, other = sorted(without)[0], "health" if "health" in record else "knn"
    with pytest.raises(UserError, match="no "):
        judge(words, f"--tasks={refused},{other}")
    assert record_of(workdir).keys() & ALL == {other}
    (workdir / "eval" / "step_0.json").unlink()
    with pytest.raises(UserError):
        judge(words, f"--tasks={refused}")
    assert not (workdir / "eval" / "step_0.json").exists()


def test_of_five_classes_there_is_no_top_5(tmp_path, judge):
    for classes in (5, 6):
        labels = np.arange(12) % classes
        splits = {"train": (labels, True), "test": (labels, True)}
        (tmp_path / str(classes)).mkdir()
        record = judge(save(tmp_path / str(classes), "arrays", **splits))
        assert ("knn_top5" in record) == (classes == 6)
        assert ("top-5" in record["linear"]) == (classes == 6)


def test_advice_fits_the_split_that_there_is(tmp_path, capsys, judge):
    for test, said in ((None, "; train with"), ((CLASSES, False), "; label them, or")):
        splits = {"train": (CLASSES, True)} | ({"test": test} if test else {})
        (tmp_path / said[2:7]).mkdir()
        judge(save(tmp_path / said[2:7], "arrays", **splits))
        assert f"each image among the others{said}" in capsys.readouterr().out


def test_means_over_nothing_are_null(tmp_path, capsys, recwarn, judge):
    splits = {"train": (CLASSES, True), "test": (np.arange(9), True)}
    record = judge(save(tmp_path, "arrays", **splits), "--tasks=retrieval")
    assert record["retrieval"]["MAP@R"] is None and record["retrieval"]["R@1"] == 0
    assert "and NMI are of nothing" in record["notes"][-1]
    assert not recwarn.list and "nan" not in capsys.readouterr().out
    assert '<th scope="row">MAP@R<td>—' in (tmp_path / "run/report.html").read_text()


def test_a_task_that_fails_loses_nothing(tmp_path, capsys, monkeypatch, judge):
    from eir_jax.evaluation import tasks

    def fails(subject, progress):
        raise UserError("the probe diverged")

    splits = {"train": (CLASSES, True), "test": (CLASSES, True)}
    words, workdir = save(tmp_path, "arrays", **splits), tmp_path / "run"
    monkeypatch.setitem(tasks.TASKS, "linear", fails)
    with pytest.raises(UserError, match="no linear probe: the probe diverged"):
        judge(words)
    assert record_of(workdir).keys() & ALL == ALL - {"linear"}
    assert "NMI" in capsys.readouterr().out
    assert "RankMe" in (workdir / "report.html").read_text()

    def breaks(subject, progress):
        raise ZeroDivisionError

    (workdir / "eval" / "step_0.json").unlink()
    monkeypatch.setitem(tasks.TASKS, "linear", breaks)
    with pytest.raises(ZeroDivisionError):
        judge(words)
    assert record_of(workdir).keys() & ALL == {"knn"}


def test_training_inspect_and_embed_see_the_same_files(tmp_path, capsys):
    from eir_jax.embed import main as embed

    words = save(tmp_path, "folder", train=(CLASSES, True))
    place = tmp_path / "data" / "日本 1"
    image = Image.fromarray(noise(1)[0])
    for suffix in ("tif", "ppm", "jfif", "avif"):
        image.save(place / f"x.{suffix}", "JPEG" if suffix == "jfif" else None)
    image.save(place / "without", "PNG")
    for hidden in (".thumbnails/a.png", "__MACOSX/._a.png", "@eaDir/a.png", "._b.png"):
        (place / hidden).parent.mkdir(exist_ok=True)
        image.save(place / hidden)
    (place / "clip.mp4").touch()
    workdir = trained(tmp_path, *words)
    line = "1 file of another kind is not read: 1 .mp4"
    assert line in capsys.readouterr().out
    out = tmp_path / "e.npz"
    embed([f"--workdir={workdir}", f"--images={tmp_path / 'data'}", f"--out={out}"])
    listed = (workdir / "pictures.jsonl").read_text().splitlines()
    with np.load(out) as arrays:
        assert list(arrays["path"]) == [json.loads(x)[1] for x in listed]
        assert len(listed) == 12 + 5
    look([f"--config={tmp_path / 'config.py'}", f"--out={tmp_path}", *words])
    out = capsys.readouterr().out
    assert "train    17 images" in out and line in out
