"""The whole way with one's own pictures, as README tells it: 60 of them, in a tree."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(command, *flags):
    """Run a command of the package to its end; return what it said."""
    words = [sys.executable, "-m", f"eir_jax.{command}", *flags]
    result = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


def make_pictures(folder):
    """Write 57 pictures in three folders and beside them, and three copies of one."""
    rng = np.random.default_rng(0)
    for number in range(57):
        blobs = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        picture = blobs.resize((96, 80), Image.Resampling.BICUBIC)
        place = folder / ("", "2019", "2019/May", "2020")[number % 4]
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number:02}.png")
    with Image.open(folder / "2019" / "01.png") as first:
        first.save(folder / "2020" / "again.bmp")
        first.resize((48, 40)).save(folder / "small.png")
        first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")


def test_from_a_folder_to_neighbours_and_duplicates(tmp_path):
    pictures, workdir, out = tmp_path / "pictures", tmp_path / "run", tmp_path / "E.npz"
    make_pictures(pictures)
    said = run(
        *("main", "--config=small_folder", f"--config.data.path={pictures}"),
        *(f"--workdir={workdir}", "--config.num_epochs=2", "--config.batch_size=16"),
        *("--config.model.name=resnet6", "--config.model.width=4"),
        "--config.data.image_size=16",
    )
    assert "60 training images, 0 test images" in said
    assert "beside folders" in said and "without classes" in said
    assert "few steps, 6 (2 epochs of 60 images in batches of 16)" in said
    run("evaluate", f"--workdir={workdir}")
    assert (workdir / "report.html").exists()

    said = run("embed", f"--workdir={workdir}", f"--images={pictures}", f"--out={out}")
    assert "60 embeddings of 128 dimensions" in said
    with np.load(out) as found:
        path, folder = found["path"].tolist(), found["folder"].tolist()
        nearest = np.argsort(-found["embedding"] @ found["embedding"][3])[:4]
    assert {"", "2019", "2019/May", "2020"} == set(folder)
    query, figure = pictures / path[3], tmp_path / "F.png"
    said = run(
        *("search", f"--embeddings={out}", f"--query={query}", "--k=4"),
        f"--figure={figure}",
    )
    assert [line for line in said.splitlines() if path[nearest[1]] in line]
    with Image.open(figure) as drawn:
        assert drawn.width > 200

    said = run("search", f"--embeddings={out}", "--duplicates")
    groups = [line for line in said.splitlines() if re.search("again|mirrored", line)]
    assert len(groups) >= 2 and "2019/01.png" in said

    page = tmp_path / "gallery.html"
    said = run("browse", f"--embeddings={out}", f"--out={page}")
    text = page.read_text()
    assert "60" in said and "<canvas" in text and "again.bmp" in text
