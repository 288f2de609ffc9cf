"""Small random folders and arrays: a success, or one line and status 2; never else.

More of them by hand: EIR_FUZZ=FIRST:LAST pytest tests/test_fuzz.py -n0
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import TINY

from eir_jax.data import picture_record, sources
from eir_jax.embed import main as embed
from eir_jax.evaluate import main as evaluate
from eir_jax.evaluation.allowed import judged_split, refused_tasks, remarks
from eir_jax.evaluation.tasks import shared_protocol
from eir_jax.main import main as train
from eir_jax.run.validate import validate
from eir_jax.system.config import load_config
from eir_jax.system.errors import UserError
from eir_jax.system.files import to_json

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]
FIRST, LAST = map(int, os.environ.get("EIR_FUZZ", "0:300").split(":"))
WHOLE = 100  # each so many-th case is trained, evaluated and embedded too
SIDE = 8
NAMES = [
    "a",
    "b c",
    "ü",
    "cafe\u0301",
    "caf\u00e9",
    "train",
    "test",
    "x'\"&<",
    "9",
    "日本",
]
MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"]
FORMS = {"RGB": "jpg", "L": "jpeg", "CMYK": "tif", "I;16": "png", "P": "gif"}
JUNK = ["Thumbs.db", ".DS_Store", "notes.txt", "x.mp4", "README", "._a.png", "y.heic"]


def pick(rng, *choices):
    return choices[rng.integers(len(choices))]


def picture(rng, folder, name):
    """Write a picture of any mode, size and format; or what is none."""
    mode = pick(rng, *MODES) if rng.random() < 0.3 else "RGB"
    height, width = rng.integers(1, 30, 2)
    suffix = {"I": "tif", "F": "tif", "CMYK": "tif", "I;16": "tif"}.get(
        mode, pick(rng, "png", "png", "webp", "tif", "gif") if mode != "1" else "png"
    )
    if mode == "RGB" and rng.random() < 0.3:
        suffix = pick(rng, "jpg", "bmp", "ppm", "JPG")
    path = folder / f"{name}.{suffix}"
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        values = rng.random((height, width)) * pick(rng, 1, 255, 4095, 65535)
        Image.fromarray(values.astype(kind)).save(path)
        return
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    image.convert("RGB" if mode == "LA" and suffix == "gif" else mode).save(path)
    if rng.random() < 0.04:
        path.write_bytes(pick(rng, b"", b"text", path.read_bytes()[:40]))


def make_folder(rng, root):
    """Make a folder in some layout; return its settings."""
    root.mkdir()
    splits = pick(rng, [""], [""], ["train"], ["train", "test"], ["train", "val"])
    if rng.random() < 0.3:
        splits = pick(
            rng, ["Training", "valid"], ["test"], ["train", "x"], ["tr", "te"]
        )
    number = 0
    for split in splits:
        classes = pick(rng, [""], list(rng.choice(NAMES, rng.integers(1, 5), False)))
        for name in classes:
            place = root / split / str(name) / pick(rng, *[""] * 9, "deeper")
            place.mkdir(parents=True, exist_ok=True)
            for _ in range(pick(rng, 0, 1, 1, 2, 3, 6, rng.integers(0, 41))):
                number += 1
                picture(rng, place, f"{number}")
            if rng.random() < 0.2:
                (place / pick(rng, *JUNK)).write_bytes(b"\0\5junk")
    keep = pick(rng, "pixels", "pixels", "encoded")
    return ["source=folder", f"path={root}", f"keep={keep}"] + (
        ["pipeline=tf.data"] if keep == "encoded" else []
    )


def make_arrays(rng, path):
    """Write an .npz, sometimes of what is none; return its settings."""
    arrays = {}
    for split in pick(rng, ["train"], ["train", "test"], ["train", "test"]):
        count = int(pick(rng, 0, 1, 2, 5, 8, 20, rng.integers(0, 41)))
        side = pick(rng, *[SIDE] * 15, 7)
        shape = (count, side, side, 3)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        if rng.random() < 0.75:
            labels = rng.integers(pick(rng, 0, 0, -1), pick(rng, 1, 2, 4, 30), count)
            arrays[f"{split}_labels"] = labels + 3 * int(rng.random() < 0.1)
    if rng.random() < 0.2:
        arrays["class_names"] = np.array(NAMES * 4)
    np.savez(path, **arrays)
    return ["source=arrays", f"path={path}"]


def make_case(seed, folder):
    """Return the command line of a random case, its data made in the folder."""
    rng = np.random.default_rng(seed)
    make = pick(rng, make_folder, make_folder, make_arrays)
    name = "a.npz" if make is make_arrays else pick(rng, "data", "d ü", "train")
    words = [f"--config.data.{word}" for word in make(rng, folder / name)]
    options = {
        "data.held_out": pick(rng, *[0.0] * 7, 0.1, 0.5),
        "data.fit": pick(rng, *["crop"] * 4, "squash"),
        "data.resize": pick(rng, 0, 0, 0, 10, 16),
        "data.broken": pick(rng, "skip", "skip", "skip", "error"),
        "knn.k": pick(rng, "1", "1,5", "5,20,200", "200"),
        "retrieval.k": pick(rng, "1,2,4,8", "1", "30"),
        "num_epochs": pick(rng, 0, 0, 1),
    }
    if make is make_arrays:
        options["data.resize"] = 0
    (folder / "config.py").write_text(TINY)
    words += [f"--config.{key}={value}" for key, value in options.items()]
    return [f"--config={folder / 'config.py'}", *words], folder / name


def ends_well(main, words):
    """Call a command; tell whether it succeeded, and check how it did not."""
    try:
        status = main(list(map(str, words)))
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error), words
        return False
    assert status in (0, None), words
    return True


def strictly(text):
    """Parse JSON as readers do that know no NaN."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def looked_at(words, folder):
    """Do what a run does before it trains; tell whether it would."""
    config = load_config(words[0].split("=", 1)[1], words[1:])
    try:
        validate(config)
        dataset = sources.load(config.data)
        picture_record.record(dataset, folder, resumes=False)
    except UserError as error:
        assert str(error) and "\n" not in str(error), (words, str(error))
        return False
    strictly(to_json(shared_protocol(dataset, config)))
    refused = refused_tasks(dataset, config)
    lines = [*dataset.notes, *remarks(dataset, config), *refused.values()]
    assert all(line and "\n" not in line for line in lines), (words, lines)
    assert judged_split(dataset) in ("train", "test")
    for split in (dataset.train, dataset.test):
        if split is not None:
            assert len(split.images) and split.images[:1].shape[1:3] == (
                (config.data.resize or SIDE,) * 2
            )
            assert split.labels is None or len(split.labels) == len(split.images)
    return True


def test_a_success_or_one_line(tmp_path, capsys):
    """Load and look at each; some are trained, evaluated and embedded too."""
    loaded = whole = 0
    for seed in range(FIRST, LAST):
        with tempfile.TemporaryDirectory(dir=tmp_path) as name:
            words, data = make_case(seed, Path(name))
            good = looked_at(words, Path(name))
            loaded += good
            if seed % WHOLE == 0 or (good and whole < (seed - FIRST) / WHOLE):
                whole += go_all_the_way(words, data, Path(name), good)
    capsys.readouterr()
    assert loaded > 0.3 * (LAST - FIRST) and whole > 0.5 * (LAST - FIRST) / WHOLE


def go_all_the_way(words, data, folder, good):
    """Train, evaluate, embed; tell whether it came to the end."""
    workdir, out = folder / "run", folder / "e.npz"
    at = f"--workdir={workdir}"
    if not ends_well(train, [*words, at]):
        return False
    assert good, words
    assert ends_well(evaluate, [at]), words
    record = strictly((workdir / "eval").iterdir().__next__().read_text())
    for task in ("knn", "linear", "retrieval", "health"):
        assert (task in record) != (task in record["refused"]), (words, task)
        if task in record["refused"]:
            assert not ends_well(evaluate, [at, f"--tasks={task}"])
    for line in (
        (workdir / "metrics.jsonl").read_text().splitlines()
        if (workdir / "metrics.jsonl").exists()
        else ()
    ):
        strictly(line)
    for file in ("config.json", "run.json"):
        strictly((workdir / file).read_text())
    assert "<h1>" in (workdir / "report.html").read_text()
    split = "--split=train" if data.suffix == ".npz" else None
    assert ends_well(embed, [at, split or f"--images={data}", f"--out={out}"]), words
    with np.load(out) as arrays:
        assert np.isfinite(arrays["embedding"]).all()
        strictly(str(arrays["meta"]))
    return True
