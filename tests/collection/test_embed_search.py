"""Pictures of any kind -> embeddings -> neighbours and duplicates, as users run it."""

import errno
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import SmallRun, small_config

from eir_jax import embed as command
from eir_jax.collection import embed as growing
from eir_jax.collection.embed import (
    describe,
    embed_grown,
    embed_pictures,
    embed_split,
)
from eir_jax.collection.embeddings import read_embeddings
from eir_jax.collection.formats import written_whole
from eir_jax.collection.pictures import squares
from eir_jax.collection.search import check_same_checkpoint, embed_query
from eir_jax.data.picture_files import list_pictures
from eir_jax.data.pictures import BrokenPicture, read_header, read_picture
from eir_jax.data.sources import load
from eir_jax.evaluation.restore import restore_run, restore_weights, tensors_of
from eir_jax.run.checkpoint import Checkpoints
from eir_jax.system.config import read_config, save_config
from eir_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
SIZE = 8


def colours(seed, height=SIZE, width=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


# Reading pictures.


def test_picture_of_the_right_size_is_unchanged(tmp_path):
    image = colours(0)
    np.testing.assert_array_equal(
        read_picture(save(image, tmp_path / "a.png"), SIZE), image
    )


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (5, 3), (41, 90)])
def test_resized_and_cropped_as_torchvision_does(shape, tmp_path):
    """Shorter side to the size, then the centre; to a pixel, where that is whole."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows * 2, columns * 2, rows + columns], axis=-1).astype(np.uint8)
    found = read_picture(save(smooth, tmp_path / "a.png"), 20)
    scale = 20 / min(shape)
    size = round(width * scale), round(height * scale)
    whole = Image.fromarray(smooth).resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - 20) // 2, (size[1] - 20) // 2
    expected = np.asarray(whole)[top : top + 20, left : left + 20]
    assert found.shape == (20, 20, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 2 * max(1, 1 / scale)


@pytest.mark.parametrize("shape", [(1, 1), (1, 60000), (60000, 1), (2, 4000)])
def test_extreme_shapes(shape, tmp_path):
    image = np.full((*shape, 3), 77, np.uint8)
    found = read_picture(save(image, tmp_path / "a.png"), SIZE)
    np.testing.assert_array_equal(found, np.full((SIZE, SIZE, 3), 77))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "gif", "JPG"])
def test_formats(suffix, tmp_path):
    save(np.full((9, 9, 3), (200, 0, 0), np.uint8), tmp_path / f"a.{suffix}")
    assert list_pictures(tmp_path) == [f"a.{suffix}"]
    found = read_picture(tmp_path / f"a.{suffix}", SIZE).astype(int)
    assert np.abs(found - (200, 0, 0)).max() <= 3


def flat(path):
    """Return the one colour of a picture."""
    found = read_picture(path, SIZE)
    assert (found == found[0, 0]).all()
    return found[0, 0].tolist()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),  # alpha: on white
        ("LA", (100, 255), (100, 100, 100)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 100, 255), (200, 0, 100)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("I;16", 257 * 90, (90, 90, 90)),  # PIL alone would give 255
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_modes(mode, colour, expected, tmp_path):
    Image.new(mode, (12, 9), colour).save(tmp_path / "a.png")
    assert flat(tmp_path / "a.png") == list(expected)


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (9, 9), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "whole.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert flat(tmp_path / "whole.png") == [40, 50, 60]
    assert flat(tmp_path / "clear.png") == [255, 255, 255]


def test_cmyk(tmp_path):
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(np.array(flat(tmp_path / "a.jpg")) - (255, 0, 0)).max() <= 3


def test_exif_rotation_is_applied(tmp_path):
    upright = np.zeros((SIZE, SIZE, 3), np.uint8)
    upright[: SIZE // 2] = 255  # white above
    for orientation, turns in ((1, 0), (3, 2), (6, 1), (8, 3)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = np.rot90(upright, turns)
        path = save(stored, tmp_path / f"{orientation}.png", exif=exif)
        np.testing.assert_array_equal(read_picture(path, SIZE), upright)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (9, 9), c) for c in ((255, 0, 0), (0, 0, 255))]
    for name in ("a.gif", "a.webp"):
        options = {} if name == "a.gif" else {"lossless": True}
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **options
        )
        assert flat(tmp_path / name) == [255, 0, 0]


def make_broken(folder):
    """Write broken pictures; return {name: part of what is said of it}."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("this is no picture\n")
    whole = save(colours(1, 64, 64), folder / "cut.jpg")
    whole.write_bytes(whole.read_bytes()[:-400])
    whole = save(colours(1, 64, 64), folder / "cut.png")
    whole.write_bytes(whole.read_bytes()[:300])
    whole = save(colours(1, 64, 64), folder / "bits.png")
    content = bytearray(whole.read_bytes())
    content[200:260] = bytes(60)
    whole.write_bytes(content)
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "loop.gif").symlink_to("loop.gif")
    os.mkfifo(folder / "pipe.bmp")
    return {
        "empty.png": "empty",
        "text.jpg": "no JPEG",
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "bits.png": "",
        "gone.png": "No such file",
        "loop.gif": "symbolic links",
        "pipe.bmp": "not a regular file",
    }


def test_broken_pictures_say_why(tmp_path):
    broken = make_broken(tmp_path)
    assert list_pictures(tmp_path) == sorted(broken)
    for name, part in broken.items():
        with pytest.raises(BrokenPicture) as error:
            read_picture(tmp_path / name, SIZE)
        assert part in str(error.value)
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; start"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle; start"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; start"),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_disk_or_memory_that_fails_is_no_broken_picture(
    tmp_path, monkeypatch, error, message
):
    """Else whole pictures would be left out, of training or of a file of embeddings."""
    path = save(colours(0), tmp_path / "a.png")

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(
        UserError, match=f"a.png cannot be .*{message}|{message}.*a.png"
    ):
        read_header(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable(tmp_path):
    path = save(colours(0), tmp_path / "a.png")
    path.chmod(0)
    with pytest.raises(BrokenPicture, match="Permission"):
        read_picture(path, SIZE)
    (tmp_path / "in").mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be read"):
        list_pictures(tmp_path)


def test_listing_is_recursive_sorted_and_ends(tmp_path):
    for name in ("b/2.png", "b/ü ö/日本 1.jpg", "a 1.png", "Z.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to("b")
    (tmp_path / "folder.png").mkdir()
    assert list_pictures(tmp_path) == [
        *("Z.png", "a 1.png", "b/2.png", "b/ü ö/日本 1.jpg")
    ]


# The command lines.


def run(module, *words):
    return subprocess.run(
        [sys.executable, "-m", f"eir_jax.{module}", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def done(module, *words):
    result = run(module, *words)
    assert result.returncode == 0, result.stderr
    return result


def assert_refused(result, *parts):
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert lines[-1].startswith("error: ") and "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[-1]


def rows_of(result):
    return [line.split("\t") for line in result.stdout.splitlines()]


def arrays_of(file):
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a run of the digits that holds checkpoints of steps 0 and 1."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    folder.mkdir()
    config = small_config(**{"data.source": "digits", "data.name": "digits"})
    small = SmallRun(config)
    save_config(config, folder / "config.json")
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    saved = config.to_dict()
    del saved["model"]["init"]  # as a run of before there was this setting
    meta = {
        "num_examples": small.num_examples,
        "train_hash": load(config.data).train_hash,
        "config": saved,
    }
    state = small.create()
    checkpoints.save(state, meta, None)
    checkpoints.wait()
    other = state.replace(step=state.step + 1, memory={"bank": -state.memory["bank"]})
    checkpoints.save(other, meta, None)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of 10 pictures, two of them the same, and broken ones."""
    folder = tmp_path_factory.mktemp("pictures") / "of all kinds"
    for i in range(8):
        save(colours(i), folder / "noise" / f"{i}.png")
    save(colours(3), folder / "copy of 3.bmp")
    save(colours(20, 50, 90), folder / "ü" / "日本\tx.jpg")
    make_broken(folder / "broken")
    return folder


PATHS = ["copy of 3.bmp", *(f"noise/{i}.png" for i in range(8)), "ü/日本\tx.jpg"]


@pytest.fixture(scope="module")
def embedded(workdir, folder):
    """Return the .npz of the folder, and what the command said."""
    out = folder.parent / "deeper" / "E.npz"
    result = done("embed", f"--workdir={workdir}", f"--images={folder}", f"--out={out}")
    return out, result


def test_embed_folder(workdir, folder, embedded):
    out, result = embedded
    assert "10 embeddings of 16 dimensions" in result.stdout
    assert "8 broken skipped" in result.stdout
    skipped = [x for x in result.stderr.splitlines() if x.startswith("skipped ")]
    assert len(skipped) == 8 and "skipped broken/empty.png: the file" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(out.parent.iterdir()) == [out]  # no leftovers
    found = arrays_of(out)
    columns = {"path", "folder", "size", "hash", "grey"}
    assert found.keys() == {"embedding", "feature", "meta", *columns}
    for path, size, digest in zip(PATHS, found["size"], found["hash"], strict=True):
        with Image.open(folder / path) as image:
            assert image.size == tuple(size)
        content = (folder / path).read_bytes()
        assert hashlib.sha256(content).hexdigest().encode() == digest
    assert found["path"].tolist() == PATHS
    assert found["embedding"].dtype == found["feature"].dtype == np.float32

    restored = restore_run(workdir)
    images = np.stack([read_picture(folder / path, SIZE) for path in PATHS])
    expected = restored.embed(restored.state, images)
    np.testing.assert_allclose(found["embedding"], expected.embedding, atol=2e-5)
    np.testing.assert_allclose(found["feature"], expected.feature, atol=1e-4)
    meta = json.loads(str(found["meta"]))
    assert meta["step"] == 1 and meta["workdir"] == str(workdir)
    assert meta["source"] == str(folder) and meta["model"]["name"] == "resnet6"
    assert "8x8" in meta["preparation"] and "mean" in meta["transform"]


@pytest.mark.slow
def test_a_grown_folder_is_embedded_where_it_is_new(workdir, tmp_path):
    """Kept, new, changed and gone pictures; the end is as of a fresh file."""
    pictures, out, fresh = tmp_path / "pictures", tmp_path / "E.npz", tmp_path / "F.npz"
    for i in range(5):
        save(colours(i), pictures / f"{i}.png")
    # As long as what there is new: rows of one block do not depend on its length.
    one = ["--config.evaluation_batch_size=1"]
    embed = ["embed", f"--workdir={workdir}", f"--images={pictures}", *one]
    first = done(*embed, f"--out={out}")
    assert "embedded before" not in first.stderr
    before = arrays_of(out)
    before["embedding"][1] = 2  # what is kept is not made again
    np.savez(out, **before)
    (pictures / "0.png").unlink()
    save(colours(7), pictures / "2.png")
    save(colours(8), pictures / "deeper" / "8.png")
    (pictures / "broken.png").touch()
    again = done(*embed, f"--out={out}")
    assert "3 embedded before, 3 to do, 1 of them changed; 1 no longer there" in (
        again.stderr
    )
    assert "5 embeddings" in again.stdout and "1 broken skipped" in again.stdout
    found = arrays_of(out)
    done(*embed, f"--out={fresh}")
    want = arrays_of(fresh)
    assert found.keys() == want.keys()
    assert found["path"].tolist() == [
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "deeper/8.png",
    ]
    assert found["folder"].tolist() == ["", "", "", "", "deeper"]
    assert (found["embedding"][0] == 2).all()
    found["embedding"][0] = want["embedding"][0]
    for name in want.keys() - {"meta"}:
        np.testing.assert_array_equal(found[name], want[name], err_msg=name)
    assert json.loads(str(found["meta"])) == json.loads(str(want["meta"]))
    third = done(*embed, f"--out={out}")  # the broken one alone is tried again
    assert "5 embedded before, 1 to do" in third.stderr
    np.testing.assert_array_equal(arrays_of(out)["hash"], want["hash"])
    other = done(*embed, f"--out={out}", "--step=0")
    assert "another checkpoint: all pictures are embedded anew" in other.stderr
    out.write_bytes(b"no embeddings")
    assert "it is replaced" in done(*embed, f"--out={out}").stderr


def test_embed_file_and_split(workdir, tmp_path):
    test = load(restore_run(workdir).config.data).test
    words = [f"--workdir={workdir}", f"--out={tmp_path / 'S.npz'}"]
    command.main([*words, "--split=test"])
    np.savez(tmp_path / "D.npz", test_images=test.images, test_labels=test.labels)
    words = [f"--workdir={workdir}", f"--out={tmp_path / 'F.npz'}", "--step=0"]
    command.main([*words, f"--images={tmp_path / 'D.npz'}"])
    one, other = arrays_of(tmp_path / "S.npz"), arrays_of(tmp_path / "F.npz")
    columns = ("index", "label", "size", "hash", "grey")
    assert one.keys() == {"embedding", "feature", "meta", *columns}
    for key in ("embedding", "feature", *columns):
        np.testing.assert_array_equal(one[key], other[key])
    np.testing.assert_array_equal(one["index"], np.arange(360))
    np.testing.assert_array_equal(one["label"], test.labels)
    assert one["index"].dtype == one["label"].dtype == np.int32
    assert json.loads(str(other["meta"]))["step"] == 0

    # Some of its rows, searched in the whole: by their index, none finds itself.
    query, figure = tmp_path / "Q.npz", tmp_path / "pictures" / "f.png"
    np.savez(query, **{k: v[:3] if v.ndim else v for k, v in other.items()})
    words = (f"--embeddings={tmp_path / 'F.npz'}", f"--query={query}", "--k=2")
    rows = rows_of(done("search", *words, f"--figure={figure}"))
    assert [row[:2] for row in rows[:3]] == [["0", "1"], ["0", "2"], ["1", "1"]]
    for query, _, neighbour, _, label in rows:
        assert neighbour != query and label == str(test.labels[int(neighbour)])
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_split_of_a_folder_is_known_by_its_paths(workdir, tmp_path):
    """So that its pictures can be shown; with the labels that training knew."""
    root, rng = tmp_path / "classes", np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for row in range(count):
            place = root / split / "ab"[row % 2]
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
            image.save(place / f"{row}.png")
    (root / "test" / "a" / "1.png").write_bytes(b"broken")
    run = restore_run(workdir)
    run.config.data.source, run.config.data.path = "folder", str(root)
    dataset = load(run.config.data)
    run = run._replace(meta=run.meta | {"train_hash": dataset.train_hash})
    found = embed_split(run, workdir, "test")
    assert found.path.tolist() == ["test/a/0.png", "test/a/2.png", "test/b/1.png"]
    assert found.index is None and found.label.tolist() == [0, 0, 1]
    assert found.meta["source"] == str(root.resolve())
    assert found.meta["class_names"] == ("a", "b") and found.meta["split"] == "test"
    want = run.embed(run.state, dataset.test.images).embedding
    np.testing.assert_allclose(found.embedding, want, atol=1e-5)
    shown = squares(found, np.array([2]), SIZE)
    np.testing.assert_array_equal(shown[0], dataset.test.images[2])
    # Gone on with as a folder, which has no labels, also where nothing is new.
    with written_whole(tmp_path / "E.npz") as write:
        write(found)
    for paths in (found.path.tolist(), [*found.path.tolist(), "train/a/0.png"]):
        grown = embed_grown(run, workdir, root, paths, tmp_path / "E.npz")
        assert grown.path.tolist() == paths and grown.label is None


def test_search_by_picture(folder, embedded, tmp_path):
    """The workdir is the noted one; the query itself is found but by another path."""
    out, _ = embedded
    figure = tmp_path / "f.png"
    words = (f"--embeddings={out}", "--k=3", f"--figure={figure}")
    rows = rows_of(done("search", *words, f"--query={folder / 'noise' / '3.png'}"))
    assert len(rows) == 3 and [row[1] for row in rows] == ["1", "2", "3"]
    assert rows[0][2:] == ["copy of 3.bmp", "1.0000"]
    assert "noise/3.png" not in [row[2] for row in rows]
    cosines = [float(row[3]) for row in rows]
    assert cosines == sorted(cosines, reverse=True)
    with Image.open(figure) as image:
        assert image.width > 4 * 160

    elsewhere = save(colours(3), tmp_path / "query.png")
    rows = rows_of(done("search", *words[:2], f"--query={elsewhere}"))
    assert {rows[0][2], rows[1][2]} == {"copy of 3.bmp", "noise/3.png"}


def test_search_by_several_pictures(folder, embedded, tmp_path, capsys):
    """Each alone, or what is like all of them: the mean of their directions."""
    from eir_jax import search as searching

    out, figure = embedded[0], tmp_path / "f.png"
    names = ["noise/3.png", "noise/5.png"]
    words = [f"--embeddings={out}", "--on=feature"]
    words += [f"--query={folder / name}" for name in names]

    def said(*more):
        searching.main([*words, *more])
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    arrays = arrays_of(out)
    unit = arrays["feature"] / np.linalg.norm(arrays["feature"], axis=1, keepdims=True)
    own = [PATHS.index(name) for name in names]
    every = unit @ unit[own].T
    rows = said("--k=9", "--least=0.9")
    for i, name in enumerate(names):
        near = {PATHS[j] for j in np.flatnonzero(every[:, i] >= 0.9) if j != own[i]}
        part = [row for row in rows if row[0] == str(folder / name)]
        assert {row[2].replace("\\t", "\t") for row in part} == near
    mean = unit[own].mean(axis=0)
    cosine = unit @ mean / np.linalg.norm(mean)
    cosine[own] = -2
    rows = said("--k=3", "--together", f"--figure={figure}")
    assert [row[:2] for row in rows] == [["2 together", str(i)] for i in (1, 2, 3)]
    order = np.argsort(-cosine)[:3]
    assert [row[2].replace("\\t", "\t") for row in rows] == [PATHS[i] for i in order]
    np.testing.assert_allclose([float(r[3]) for r in rows], cosine[order], atol=1e-4)
    assert figure.read_bytes().startswith(b"\x89PNG")
    several = f"--query={folder / 'noise'}"
    assert "as the only --query" in refused("search", *words, several)
    assert "k=9 must be from 1 to 8" in refused("search", *words, "--together", "--k=9")
    assert "a cosine" in refused("search", *words, "--least=2")


def test_weights_go_out_and_embed_as_the_run(workdir, folder, embedded, tmp_path):
    weights, file = tmp_path / "deeper" / "F.safetensors", tmp_path / "W.npz"
    result = done("export", f"--workdir={workdir}", f"--to={weights}")
    assert "step 1, " in result.stdout
    words = [f"--weights={weights}", f"--images={folder}", f"--out={file}"]
    assert f"by {weights}" in done("embed", *words).stdout
    found, expected = arrays_of(file), arrays_of(embedded[0])
    for key in ("embedding", "feature", "path"):
        np.testing.assert_array_equal(found[key], expected[key])
    words = [f"--embeddings={file}", "--k=1"]  # which note the weights
    rows = rows_of(done("search", *words, f"--query={folder / 'noise' / '3.png'}"))
    assert rows[0][2] == "copy of 3.bmp"


def test_query_is_prepared_as_the_gallery_was(workdir, folder, tmp_path):
    """By weights of another program, with which the settings do not come."""
    from safetensors.numpy import save_file

    tensors = tensors_of(workdir)
    weights, file = tmp_path / "W.safetensors", tmp_path / "E.npz"
    save_file({n: x for n, x in tensors.items() if n[:3] != "fc."}, weights)
    settings = ["--config.data.image_size=8", "--config.data.mean=.2,.3,.4"]
    run, names = restore_weights(weights, settings), ["3.png", "5.png"]
    gallery = embed_pictures(run, weights, folder / "noise", names)
    with written_whole(file) as write:
        write(gallery)
    queries = [folder / "noise" / name for name in names]
    found = embed_query(queries, read_embeddings(file), None, None)
    np.testing.assert_array_equal(found.embedding, gallery.embedding)
    for other, words in (
        (["--config.data.image_size=16"], "image_size 16, where .* have 8"),
        (settings[:1], "transform no crop, .* where"),
    ):
        meta = describe(restore_weights(weights, other), weights)
        with pytest.raises(UserError, match=words):
            check_same_checkpoint(meta, gallery.meta, "the query")


def test_no_memory_is_not_taken_for_broken_pictures(
    workdir, folder, tmp_path, monkeypatch
):
    """A grown folder's new rows: the file stays as it was, and the error is told."""
    run, file = restore_run(workdir), tmp_path / "E.npz"
    names = ["0.png", "1.png"]
    first = embed_pictures(run, workdir, folder / "noise", names[:1])
    with written_whole(file) as write:
        write(first)

    def fails(*_):
        raise UserError("out of memory: lower evaluation_batch_size")

    run = run._replace(embed=fails)
    monkeypatch.setattr(growing, "_embed_by", lambda *_: fails)
    with pytest.raises(UserError, match="out of memory"):
        embed_grown(run, workdir, folder / "noise", names, file)


def test_processes_with_other_pictures_are_refused(workdir, folder, monkeypatch):
    """Where process 1 finds all in --out, or one more in the folder."""
    run = restore_run(workdir)
    for theirs in (["0.png", "1.png"], []):
        said = growing._fingerprint(theirs)
        monkeypatch.setattr(
            "eir_jax.system.processes.exchange", lambda text, said=said: [text, said]
        )
        with pytest.raises(UserError, match="the pictures to embed of process 1"):
            embed_pictures(run, workdir, folder / "noise", ["0.png"])


def test_search_by_folder_skips_the_broken(workdir, folder, embedded):
    out, _ = embedded
    result = done(
        *("search", f"--embeddings={out}", f"--query={folder}", "--k=9"),
        f"--workdir={workdir}",
    )
    rows = rows_of(result)
    assert len(rows) == 90 and all(len(row) == 4 for row in rows)
    assert "skipped broken/text.jpg" in result.stderr
    names = [name.replace("\t", "\\t") for name in PATHS]
    for i, name in enumerate(names):  # each finds all the others
        part = rows[9 * i : 9 * i + 9]
        assert {row[0] for row in part} == {name}
        assert sorted([name, *(row[2] for row in part)]) == sorted(names)


def test_names_that_are_no_unicode_go_out_as_they_are(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    np.savez(tmp_path / "E.npz", embedding=np.ones((2, 4)), path=[name, "b.png"])
    result = subprocess.run(
        [
            *(sys.executable, "-m", "eir_jax.search", "--duplicates=1"),
            f"--embeddings={tmp_path / 'E.npz'}",
        ],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    line = b"caf\xe9.png\tb.png\t1.0000\tnear\n"
    assert result.stdout == line, result.stderr


def test_neither_imports_tensorflow(workdir, folder, tmp_path):
    """Nor could they: the import is made to fail, and the work is done."""
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from eir_jax import embed, search\n"
        f"embed.main(['--workdir={workdir}', '--images={folder / 'noise'}',"
        f" '--out={tmp_path / 'E.npz'}'])\n"
        f"search.main(['--embeddings={tmp_path / 'E.npz'}',"
        f" '--query={folder / 'noise'}', '--k=1'])\n"
        "names = [m for m in sys.modules if m.split('.')[0] == 'tensorflow']\n"
        "assert names == ['tensorflow'], names\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120
    )
    assert result.returncode == 0, result.stderr.decode()


def test_checkpoint_of_another_model_is_refused(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    config = read_config(copy / "config.json")
    config.model.init = "he"
    save_config(config, copy / "config.json")
    with pytest.raises(UserError, match=r"'init': 'he'.*put the settings back"):
        restore_run(copy)


# Bad input. In-process, but for one: each start of Python takes seconds.


def refused(module, *words):
    with pytest.raises((UserError, SystemExit)) as error:
        command = importlib.import_module(f"eir_jax.{module}")
        command.main([str(word) for word in words])
    return str(error.value)


def test_one_picture_alone(workdir, tmp_path):
    (tmp_path / "one").mkdir()
    alone = save(colours(0), tmp_path / "one" / "1.png")
    words = (f"--workdir={workdir}", f"--out={tmp_path / 'one.npz'}")
    assert "is one picture" in refused("embed", f"--images={alone}", *words)
    command.main([f"--images={alone.parent}", *words])
    words = (f"--embeddings={tmp_path / 'one.npz'}", f"--query={alone.parent}")
    assert "gallery is the query alone" in refused("search", *words)


def test_embed_refuses(workdir, folder, tmp_path, capsys):

    def said(*words, out=tmp_path / "E.npz"):
        return refused("embed", f"--workdir={workdir}", *words, f"--out={out}")

    assert said() == "2" and "give --images" in capsys.readouterr().err
    assert "no folder or file" in said(f"--images={tmp_path / 'none'}")
    assert "holds no pictures" in said(f"--images={tmp_path}")
    assert "has no --split" in said(f"--images={folder}", "--split=test")
    assert "none of 8" in said(f"--images={folder / 'broken'}")
    assert "no checkpoint of step 7" in said(f"--images={folder}", "--step=7")
    assert "is a folder" in said(f"--images={folder}", out=tmp_path)
    assert "cannot be written" in said(f"--images={folder}", out="/proc/no/E.npz")
    file = tmp_path / "images.npz"
    np.savez(file, images=np.zeros((2, 9, 9, 3), np.uint8))
    assert "9x9" in said(f"--images={file}")
    np.savez(file, images=np.zeros((2, 8, 8, 3)))
    assert "float64" in said(f"--images={file}")
    both = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(file, train_images=both, test_images=both)
    assert "give --split" in said(f"--images={file}")
    file.write_text("no npz")
    assert "cannot be read" in said(f"--images={file}")
    assert list(tmp_path.iterdir()) == [file]  # nothing half written
    result = run(
        *("embed", "--workdir=/nowhere", "--split=test"), f"--out={tmp_path / 'E.npz'}"
    )
    assert_refused(result, "/nowhere is no workdir")


def test_export_and_weights_refuse(workdir, folder, tmp_path, capsys):
    said = refused("export", f"--workdir={workdir}", f"--to={tmp_path / 'F.h5'}")
    assert "no form of .safetensors, .onnx, .stablehlo" in said
    said = refused("export", "--workdir=/nowhere", f"--to={tmp_path / 'F.onnx'}")
    assert "/nowhere is no workdir" in said
    # What cannot be written is said before the checkpoint is looked for.
    for name in ("F.onnx", "F.stablehlo", "F.stablehlo.json"):
        (tmp_path / name).mkdir()
        to = tmp_path / name.removesuffix(".json")
        said = refused("export", "--workdir=/nowhere", f"--to={to}")
        assert f"{tmp_path / name} is a folder; give the name of a file" in said
        (tmp_path / name).rmdir()
    said = refused("export", f"--workdir={__file__}", f"--to={tmp_path / 'F.onnx'}")
    assert "test_embed_search.py is no workdir: it is a file" in said
    words = [f"--images={folder}", f"--out={tmp_path / 'o.npz'}"]
    said = refused("embed", f"--weights={tmp_path / 'no.safetensors'}", *words)
    assert "there is no file of weights" in said
    for more in (f"--workdir={workdir}", "--step=3"):
        assert refused("embed", f"--weights={folder}", more, *words) == "2"
        assert "not allowed with" in (err := capsys.readouterr().err) or "--step" in err
    assert not list(tmp_path.iterdir())


def test_search_refuses(workdir, folder, embedded, tmp_path, capsys):
    out, _ = embedded
    file, picture = tmp_path / "X.npz", folder / "noise" / "0.png"

    def said(*words, embeddings=out):
        return refused("search", f"--embeddings={embeddings}", *words)

    def said_of(*words, **arrays):
        np.savez(file, **arrays)
        return said(*(words or ["--duplicates=0.9"]), embeddings=file)

    good = np.eye(3, 16, dtype=np.float32)
    assert said() == "2" and "--query" in capsys.readouterr().err
    assert "no file" in said("--duplicates=1", embeddings=tmp_path / "none.npz")
    assert "holds no 'embedding'" in said_of(feature=good)
    assert "float32 [n, dim]" in said_of(embedding=good[0])
    assert "NaN" in said_of(embedding=good * np.nan)
    assert "3 strings" in said_of(embedding=good, path=["a", "b"])
    assert "cannot be read" in said_of(embedding=np.array([None, {}]))
    assert "'embedding' of" in said_of(embedding=good[:0])
    assert "a cosine" in said_of("--duplicates=nan", embedding=good)
    assert "k=10 must be from 1 to 9" in said("--k=10", f"--query={picture}")
    assert "k=0" in said("--k=0", f"--query={picture}")
    assert "no picture" in said(f"--query={tmp_path / 'none.png'}")
    broken = said(f"--query={folder / 'broken' / 'cut.jpg'}")
    assert "cut.jpg cannot be read as a picture" in broken
    np.savez(file, embedding=good[:, :7])
    assert "differ in dimension" in said(f"--query={file}", "--k=1")
    assert "note no workdir" in said_of(f"--query={picture}", embedding=good)
    meta = np.array(json.dumps({"workdir": "/gone"}))
    gone = said_of(f"--query={picture}", embedding=good, meta=meta)
    assert "/gone" in gone and "give --workdir" in gone
    assert "is not the checkpoint" in said(f"--query={picture}", "--step=0")
    words = (f"--query={picture}", f"--figure={tmp_path / 'f.png'}")
    assert "give --images=DIR" in said(*words, f"--images={tmp_path}", "--k=1")
    assert_refused(run("search", f"--embeddings={out}", "--k=a"), "--k")
