"""Paths of the command line: expanded, named, refused; and outputs, before the work."""

import os
from pathlib import Path

import numpy as np
import pytest

from eir_jax import (
    coefficients,
    embed,
    evaluate,
    export,
    inspect,
    main,
    results,
    search,
    sweep,
)
from eir_jax.system import files
from eir_jax.system.errors import UserError

CONFIG = f"--config={Path(__file__).parents[2] / 'configs' / 'digits.py'}"
FLAGS = [  # each path flag of each command, with what else that needs
    (main, "--workdir", [CONFIG]),
    (main, "--config", ["--workdir=w"]),
    (evaluate, "--workdir", []),
    (evaluate, "--compare", ["--workdir=w"]),
    (evaluate, "--data_path", ["--workdir=w"]),
    (evaluate, "--out", ["--workdir=w"]),
    (evaluate, "--weights", ["--out=o"]),
    (evaluate, "--embeddings", ["--out=o"]),
    (evaluate, "--config", ["--workdir=w"]),
    (export, "--workdir", ["--to=F.onnx"]),
    (export, "--to", ["--workdir=w"]),
    (embed, "--workdir", ["--images=.", "--out=E.npz"]),
    (embed, "--weights", ["--images=.", "--out=E.npz"]),
    (embed, "--embeddings", ["--out=E.csv"]),
    (embed, "--images", ["--workdir=w", "--out=E.npz"]),
    (embed, "--out", ["--workdir=w", "--images=."]),
    (embed, "--data_path", ["--workdir=w", "--split=test", "--out=E.npz"]),
    (search, "--embeddings", ["--duplicates=1"]),
    (search, "--query", ["--embeddings=E.npz"]),
    (search, "--workdir", ["--embeddings=E.npz", "--query=."]),
    (search, "--figure", ["--embeddings=E.npz", "--query=."]),
    (search, "--images", ["--embeddings=E.npz", "--query=."]),
    (sweep, "--config", ["--grid=table1", "--workdir=w"]),
    (sweep, "--grid", [CONFIG, "--workdir=w"]),
    (sweep, "--workdir", [CONFIG, "--grid=table1"]),
    (results, "--out", ["w"]),
    (results, "", []),
    (coefficients, "--out", ["--x=seed", "w"]),
    (coefficients, "--baseline", ["--x=seed", "--out=a.png", "w"]),
    (coefficients, "", ["--x=seed", "--out=a.png"]),
    (inspect, "--config", []),
    (inspect, "--out", [CONFIG]),
]


@pytest.mark.parametrize("value", ["gs://bucket/x", "s3://b", "https://a.b/c", ""])
@pytest.mark.parametrize(
    ("command", "flag", "others"), FLAGS, ids=lambda x: getattr(x, "__name__", None)
)
def test_no_command_takes_what_is_no_local_path(
    command, flag, others, value, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command.main([*others, f"{flag}={value}" if flag else value])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is no local path" in line if value else "is empty" in line
    assert not list(tmp_path.iterdir())


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("~/runs/x") == tmp_path / "runs" / "x"
    assert files.local_path("~") == tmp_path
    assert files.local_path("a/~/b") == Path("a/~/b")
    assert files.local_path("c:/d") == Path("c:/d")
    with pytest.raises(UserError, match="~nobody_of_that_name"):
        files.local_path("~nobody_of_that_name/x")


def test_a_relative_path_is_named_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = r"f3(\.py)? \(in .*" + tmp_path.name + r"\)"
    for command, words in (
        (main, [CONFIG, "--workdir=w", "--config.data.source=folder", PATH]),
        (inspect, [CONFIG, "--config.data.source=arrays", PATH]),
        (main, ["--config=f3", "--workdir=w"]),
        (evaluate, ["--workdir=f3"]),
        (embed, ["--workdir=w", "--images=f3", "--out=E.npz"]),
        (search, ["--embeddings=f3", "--duplicates=1"]),
        (results, ["f3"]),
        (coefficients, ["--x=seed", "--out=a.png", "f3"]),
    ):
        with pytest.raises(UserError, match=seen):
            command.main(words)
    assert not (tmp_path / "w").exists()


PATH = "--config.data.path=f3"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (embed, ["--workdir=w", "--images=.", "--out=a.xlsx"]),
        (embed, ["--workdir=w", "--images=.", "--out=a.json"]),
        (embed, ["--workdir=w", "--images=.", "--out=a"]),
        (search, ["--embeddings=E.npz", "--query=.", "--figure=a.jpg"]),
        (search, ["--embeddings=E.npz", "--query=.", "--figure=a.pdf"]),
        (coefficients, ["--x=seed", "--out=a.svg", "w"]),
        (coefficients, ["--x=seed", "--out=a", "w"]),
        (results, ["--out=a.html", "w"]),
        (inspect, [CONFIG, "--out=a.png"]),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else x.__name__,
)
def test_a_name_that_promises_another_format_is_refused(
    command, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"does not say|name of a file"):
        command.main(words)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def blocked(tmp_path):
    """Return a path that cannot be written, in each of the ways that root knows too."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    return {
        "a folder": tmp_path / "folder.npz",
        "parent is a file": tmp_path / "file" / "a.npz",
        "a long name": tmp_path / f"{'a' * 260}.npz",
        "in circles": tmp_path / "circle" / "a.npz",
        "of the kernel": Path("/proc/a.npz"),
    }


def test_what_cannot_be_written_is_said_before_the_work(blocked, tmp_path):
    for path in blocked.values():
        with pytest.raises(UserError, match=r"cannot be written|is a folder"):
            files.check_writable(path)
        with pytest.raises(UserError, match=r"cannot be written|is a folder"):
            embed.main(
                [f"--workdir={tmp_path}", f"--images={tmp_path}", f"--out={path}"]
            )
    for path in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x")):
        with pytest.raises(UserError, match="cannot be written"):
            files.check_folder(path)
    files.check_writable(tmp_path / "new" / "a.npz")
    files.check_folder(tmp_path / "run.v2")
    assert not list((tmp_path / "new").iterdir() or (tmp_path / "run.v2").iterdir())


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_without_the_right_to_write(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        files.check_writable(tmp_path / "a")


def test_labels_are_stored_as_they_were_given(tmp_path):
    from eir_jax.collection.embeddings import Embeddings, read_embeddings
    from eir_jax.collection.formats import written_whole

    rows, labels = np.eye(3, dtype=np.float32), np.array([2**40, 0, -1])
    with written_whole(tmp_path / "E.npz") as write:
        write(Embeddings(rows, rows, np.array(["a\udce9", "b", "c"]), None, labels, {}))
    found = read_embeddings(tmp_path / "E.npz")
    assert found.label.tolist() == labels.tolist()
    assert found.path.tolist() == ["a\udce9", "b", "c"]
