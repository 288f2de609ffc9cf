"""The wheel, installed in an environment of its own, outside the tree."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import eir_jax
from eir_jax.__main__ import COMMANDS
from eir_jax.system.config import load_config
from eir_jax.system.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = [
    "--config.data.image_size=8",
    "--config.num_epochs=1",
    "--config.batch_size=128",
    "--config.model.name=resnet6",
    "--config.model.width=4",
    "--config.model.embedding_dim=16",
    "--config.eval_every_epochs=0",
    "--config.knn.k=1,5",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of a copy of what git holds, as its builder writes beside it."""
    if Version(version("setuptools")) < Version("77"):
        pytest.skip("setuptools is older than 77; `make test` installs a newer one")
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and name.split("/")[0] not in ("tests", "ledger"):
            target = folder / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"]
    build = [*pip, "--no-build-isolation", "-w", str(folder), str(folder / "tree")]
    subprocess.run(build, check=True)
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_holds_all_and_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (notes,) = (n for n in names if n.endswith("/METADATA"))
        metadata = opened.read(notes).decode()
    for folder, place in (("configs", "configs"), ("configs/grids", "configs/grids")):
        for file in (ROOT / folder).glob("*.py"):
            assert f"eir_jax/{place}/{file.name}" in names
    for file in (ROOT / "eir_jax").rglob("*.py"):
        assert file.relative_to(ROOT).as_posix() in names
    assert {"eir_jax/py.typed", "eir_jax/data/imagenet100_classes.txt"} <= names
    assert "eir_jax/collection/gallery.html" in names
    assert not [n for n in names if not n.startswith("eir_jax")]
    for line in (
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.11",
        "Classifier: Typing :: Typed",
        *(f"Provides-Extra: {x}" for x in ("cuda", "export", "test", "tfds", "tpu")),
    ):
        assert line in metadata
    plain = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert {"jax", "flax", "safetensors"} <= {Requirement(x).name for x in plain}
    assert not [x for x in plain if "tensorflow" in x]


def test_extras_keep_the_bounds_of_jax():
    def jax_of(name):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        found = map(Requirement, (x for x in lines if not x.startswith("#")))
        return next(x.specifier for x in found if x.name == "jax")

    assert jax_of("cuda") == jax_of("tpu") == jax_of("core")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"


def test_citation_and_changes_name_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {eir_jax.__version__}\n" in citation
    first = re.search(r"^## (\S+?)[, ]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first and first[1] == eir_jax.__version__


def test_ci_runs_the_targets_there_are_on_the_versions_that_are_claimed():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"run: make (\w+)", workflow)
    assert {"test", "newest"} <= {*targets}
    assert all(f"\n{target}:" in makefile for target in targets)
    claimed = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert claimed == sorted(set(re.findall(r'"(3\.\d+)"', workflow)))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel where the tree is not, with the libraries that are here."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", symlinks=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    here = [p for p in sys.path if p.endswith("site-packages")]
    (packages / "here.pth").write_text("\n".join(here))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python")]
    install = [*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    # Somebody else's folder of the same name shadows nothing of ours.
    (folder / "configs").mkdir()
    (folder / "configs" / "__init__.py").write_text("raise ImportError('not ours')")
    return folder


def run(folder, *words, status=0):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    program = folder / "env/bin" / words[0]
    result = subprocess.run(
        [program, *words[1:]],
        cwd=folder,
        env=environment | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


@pytest.mark.slow
def test_installed_program_trains_evaluates_and_sweeps(installed):
    where = run(installed, "python", "-c", "import eir_jax; print(eir_jax.__file__)")
    assert str(installed) in where.stdout
    # A config and a grid of the user's own, with parts of ours, also as `configs`.
    (installed / "mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from configs import digits\n"
        "from eir_jax.configs import base\n"
        "def get_config():\n"
        "    c = ConfigDict({'data': digits.get_config().data, 'num_epochs': 1})\n"
        "    c.temperature = base.get_config().temperature\n"
        "    return c\n"
    )
    (installed / "grid.py").write_text(
        "from configs.grids import table1\nGRID = {'IR': table1.GRID['IR']}\n"
    )
    words = ["--config=mine.py", "--workdir=s", "--tasks=knn", *TINY]
    result = run(installed, "eir-jax", "sweep", "--grid=choices", *words, "--dry_run")
    assert len(result.stdout.splitlines()) == 6
    result = run(installed, "python", "-m", "eir_jax.sweep", "--grid=grid.py", *words)
    assert "finished after" in result.stdout and (installed / "s/table.md").is_file()
    alone = ["--config.objective=ir", "--config.lambda_intra=0"]
    alone += ["--config.lambda_inter=0", "--config=digits", "--workdir=w"]
    run(installed, "eir-jax", "train", *alone, *TINY)
    result = run(installed, "eir-jax", "evaluate", "--workdir=w", "--tasks=knn")
    assert "kNN" in result.stdout and (installed / "w/report.html").is_file()


@pytest.mark.slow
def test_installed_program_says_what_there_is(installed):
    result = run(installed, "eir-jax")
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout
    assert "eir_jax 0." in run(installed, "eir-jax", "--version").stdout
    result = run(installed, "eir-jax", "evalute", status=2)
    assert result.stderr == (
        "error: there is no command 'evalute'; did you mean evaluate?\n"
    )
    result = run(installed, "eir-jax", "train", status=2)
    assert "see `eir-jax train --help`" in result.stderr
    words = ["--config=configs/digit.py", "--workdir=x"]
    result = run(installed, "eir-jax", "train", *words, status=2)
    assert "did you mean configs/digits.py?" in result.stderr


def test_every_command_has_a_name():
    modules = {
        file.stem
        for file in (ROOT / "eir_jax").glob("*.py")
        if "cli.run(main)" in file.read_text()
    }
    assert {module for module, _ in COMMANDS.values()} == modules


# Config files by name, and those of users.


def test_our_configs_go_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load_config(str(ROOT / "configs/digits.py"))
    assert load_config("digits") == load_config("configs/digits.py") == expected
    (tmp_path / "digits.py").write_text(
        "from configs import base\n"
        "def get_config():\n    c = base.get_config()\n    c.seed = 9\n    return c\n"
    )
    assert load_config("digits.py").seed == 9 and load_config("digits").seed == 0
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("from digits import get_config")
    (tmp_path / "more.py").write_text("from configs.mine import get_config")
    assert load_config("more.py").seed == 9
    with pytest.raises(UserError, match=r"no config file configs/digts\.py .*did you"):
        load_config("digts")


def test_configs_of_others_are_left_alone(tmp_path, monkeypatch):
    """In a process where `configs` is somebody else's, it stays so."""
    import types

    theirs = types.ModuleType("configs")
    monkeypatch.setitem(sys.modules, "configs", theirs)
    load_config("stl10_105k")
    assert sys.modules["configs"] is theirs


def test_config_stands_alone_on_the_defaults(tmp_path):
    file = tmp_path / "mine.py"

    def config(*lines):
        body = "".join(f"    {line}\n" for line in lines)
        file.write_text(
            "from ml_collections import ConfigDict\n"
            f"def get_config():\n    c = ConfigDict()\n{body}    return c\n"
        )
        return load_config(str(file))

    base = load_config("base")
    assert config() == base
    found = config("c.seed = 4", "c.optimizer = {'milestones': [3, 4]}")
    assert found.seed == 4 and found.optimizer.milestones == (3, 4)
    assert found.optimizer.factors == base.optimizer.factors
    with pytest.raises(UserError, match=r"sets lambda_intr.*did you mean lambda_intra"):
        config("c.lambda_intr = 3.0")
    with pytest.raises(UserError, match=r"mine.py: .*seed"):
        config("c.seed = 'x'")
