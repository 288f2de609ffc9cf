"""Paths of the command line: expanded, named, refused; and outputs, before the work."""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eir_jax import (
    browse,
    coefficients,
    embed,
    evaluate,
    export,
    inspect,
    main,
    plan,
    results,
    search,
    sweep,
)
from eir_jax.__main__ import COMMANDS
from eir_jax.data.class_list import read_class_list
from eir_jax.system import cli, files
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
    (search, "--against", ["--embeddings=E.npz", "--duplicates"]),
    (browse, "--embeddings", ["--out=a.html"]),
    (browse, "--images", ["--embeddings=E.npz", "--out=a.html"]),
    (browse, "--out", ["--embeddings=E.npz"]),
    (plan, "--config", ["--topology=cpu:1"]),
    (sweep, "--config", ["--grid=table1", "--workdir=w"]),
    (sweep, "--grid", [CONFIG, "--workdir=w"]),
    (sweep, "--workdir", [CONFIG, "--grid=table1"]),
    (results, "--out", ["w"]),
    (results, "--ledger", ["w"]),
    (results, "", []),
    (coefficients, "--out", ["--x=seed", "w"]),
    (coefficients, "--baseline", ["--x=seed", "--out=a.png", "w"]),
    (coefficients, "", ["--x=seed", "--out=a.png"]),
    (inspect, "--config", []),
    (inspect, "--out", [CONFIG]),
]


NOWHERE = {
    "gs://bucket/x": "is no local path",
    "file:///a/b%20c": "give /a/b c",
    "file:/a": "give /a",
    "file://localhost/a#1": "give /a#1",
    "file://host/a": "is no local path; mount it",
    "host:/a": "is no local path",
    "$HOME/x": "write what $HOME stands for",
    "": "is empty",
}


@pytest.mark.parametrize("value", NOWHERE)
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
    assert NOWHERE[value] in line
    assert not list(tmp_path.iterdir())


def test_every_path_of_every_command_is_among_these(monkeypatch):
    class Built(Exception):
        pass

    def built(parser, argv, namespace=None):
        raise Built(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", built)
    paths = set()
    for name, _ in COMMANDS.values():
        with pytest.raises(Built) as made:
            importlib.import_module(f"eir_jax.{name}").main([])
        paths |= {
            (name, "".join(action.option_strings))
            for action in made.value.args[0]._actions
            if action.type in (cli.path, cli.paths)
        }
    assert paths == {(c.__name__.split(".")[-1], flag) for c, flag, _ in FLAGS}


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


def test_what_is_read_is_not_replaced(tmp_path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images)
    np.savez(tmp_path / "E.npz", embedding=np.eye(3, dtype=np.float32))
    Image.fromarray(images[0]).save(tmp_path / "q.png")
    at, before = tmp_path, {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for command, words, said in (
        (embed, ["--workdir=w", f"--images={at}/a.npz", f"--out={at}/a.npz"], "read"),
        (embed, ["--workdir=w", f"--images={at}", f"--out={at}/a.npz"], "train_images"),
        (embed, [f"--embeddings={at}/E.npz", f"--out={at}/a.npz"], "would be lost"),
        (embed, [f"--embeddings={at}/E.npz", f"--out={at}/E.npz"], "is what is read"),
        (
            *(search, [f"--embeddings={at}/E.npz", f"--query={at}/q.png"]),
            "what is read",
        ),
    ):
        if command is search:
            words = [*words, f"--figure={at}/q.png"]
        with pytest.raises(UserError, match=said):
            command.main(words)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_search_says_where_no_pictures_are(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    for name in ("circle", "nothing"):
        words = [f"--images={tmp_path / name}", "--embeddings=E.npz", "--query=q.png"]
        with pytest.raises(UserError, match=f"no folder or file .*{name}"):
            search.main(words)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_fault(closed):
    program = (
        "from eir_jax.system import cli, progress\n"
        "def main(argv):\n"
        "    progress.ProgressLine('a', 1).say('b')\n"
        "    raise cli.UserError('c\\nd')\n"
        "cli.run(main)\n"
    )
    words = f'"{sys.executable}" -c "{program}" {closed}'
    found = subprocess.run(["sh", "-c", words], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == ("" if "2>" in closed else "error: c\\nd\n")


def test_a_list_of_classes_that_never_ends_is_not_read():
    for name in ("/dev/zero", "/dev"):
        with pytest.raises(UserError, match=f"class list {name} "):
            read_class_list(name)


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
        (inspect, [CONFIG, "--out=a.NPY"]),
        (main, [CONFIG, "--workdir=a.JSON"]),
        (main, [CONFIG, "--workdir=a.safetensors"]),
        (browse, ["--embeddings=E.npz", "--out=a.htm"]),
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


def test_a_folder_whose_name_looks_like_an_address_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no local path"):
        files.local_path("Exp:/x")
    (tmp_path / "Exp:").mkdir()
    assert files.local_path("Exp:/x") == Path("Exp:/x")
