"""The pages: every command in them can be typed, and is run by a test or named here."""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

import eir_jax
from eir_jax.__main__ import COMMANDS
from eir_jax.run.metrics import MetricsWriter
from eir_jax.system.config import find_config, flatten, load_config

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RESULTS.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Which tests run a command of ours as a user does, on data that is here.
RUN_BY = {
    "browse": "tests/collection/test_gallery.py",
    "coefficients": "tests/experiments/test_coefficients.py",
    "embed": "tests/collection/test_embed_search.py",
    "evaluate": "tests/test_main.py",
    "export": "tests/collection/test_embed_search.py",
    "inspect": "tests/test_inspect.py",
    "main": "tests/test_main.py",
    "plan": "tests/planning/test_plan.py",
    "results": "tests/experiments/test_tables.py",
    "search": "tests/collection/test_embed_search.py",
    "sweep": "tests/experiments/test_sweep.py",
}
# Not run by the suite: they install, need a network or another machine, or are the
# suite and its tools.
NOT_RUN = """
make quickstart
make test
make oracle
make plan
pip install --no-deps jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2
make newest PYTHON=python3.12 VENV=.venv-newest
pip install .
pip install ".[cuda]"
pip install ".[tpu]"
python -c "import jax; print(jax.devices())"
.venv/bin/pip install -r requirements.txt -r requirements/cuda.txt
tensorboard --logdir=runs
.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
.venv/bin/python -m pytest tests/objectives -n0
.venv/bin/python -m pytest -m "not slow"
launch/local.sh 2 --config=configs/digits.py --workdir=runs/digits2
""".strip().splitlines()


def commands(page):
    """Return the lines of a page's indented blocks, continued ones joined."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    blocks = re.findall(r"(?:^|\n)\n((?: {4}\S.*\n(?: {4,}.*\n)*)+)", text)
    joined = "".join(blocks).replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line) for line in joined.splitlines()]
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip()]


EVERY = sorted({(page.name, line) for page in PAGES for line in commands(page)})


@pytest.mark.parametrize(("page", "line"), EVERY)
def test_command_can_be_typed(page, line):
    """Of ours: the module, its flags, the config and its settings are there."""
    if line in NOT_RUN:
        return
    words = shlex.split(line.replace("[", "").replace("]", ""))
    if words[:1] == ["eir-jax"]:
        if len(words) == 1:
            return
        module, flags = COMMANDS[words[1]][0], words[2:]
    else:
        assert words[:2] == ["python", "-m"], f"{line}: put it into NOT_RUN"
        module, flags = words[2].removeprefix("eir_jax."), words[3:]
    runs = (ROOT / RUN_BY[module]).read_text()
    ways = (f'"{module}"', f"eir_jax.{module}", f"eir_jax import {module}")
    runs_it = any(way in runs for way in ways)
    assert runs_it, f"{RUN_BY[module]} does not run {module}"
    source = (ROOT / "eir_jax" / f"{module}.py").read_text()
    if "collection import flags" in source:
        source += (ROOT / "eir_jax" / "collection" / "flags.py").read_text()
    settings = flatten(load_config("base"))
    for flag in (word.split("=")[0] for word in flags if word.startswith("--")):
        if flag.startswith("--config."):
            assert flag.removeprefix("--config.") in settings, line
        else:
            assert f'"{flag}"' in source, f"{line}: there is no {flag}"
    for word in flags:
        flag, _, value = word.partition("=")
        if flag in ("--config", "--grid") and value != "FILE":
            find_config(value, "grids" if flag == "--grid" else "")


def test_what_is_not_run_stands_in_a_page():
    assert [x for x in NOT_RUN if x not in {line for _, line in EVERY}] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_python_compiles(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, page.name, "exec")
        for name in re.findall(r"\beir_jax\.(\w+)\(", block):
            assert name in eir_jax.__all__, f"{page.name}: eir_jax.{name}"


def test_readme_is_short_and_its_pictures_are_small():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
    pictures = [*(ROOT / "docs").glob("*.png")]
    assert pictures and sum(p.stat().st_size for p in pictures) < 150_000


def test_metrics_go_to_weights_and_biases_as_the_page_says(tmp_path, monkeypatch):
    """Its lines run, with a stand-in of the package that notes what it is given."""
    page = (ROOT / "docs" / "install.md").read_text()
    (block,) = re.findall(r"```python\n(import json\n\nimport wandb.*?)```", page, re.S)
    folder = tmp_path / "runs" / "digits"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"seed": 3}')
    logged = []
    with closing(MetricsWriter(folder, step=0)) as writer:
        writer.write(4, {"loss": 2.0, "knn": {"5": 0.5}})
        writer.write(8, {"loss": 1.0})

    class Run:
        def log(self, record, step):
            logged.append((step, record))

        def finish(self):
            logged.append("finished")

    def init(project, mode, config):
        logged.append((mode, config))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert logged == [
        ("offline", {"seed": 3}),
        (4, {"loss": 2.0, "knn": {"5": 0.5}}),
        (8, {"loss": 1.0}),
        "finished",
    ]


def test_commands_are_found_in_the_pages():
    found = {page for page, _ in EVERY}
    assert {"README.md", "install.md", "weights.md", "sweeps.md", "data.md"} <= found
    assert len(EVERY) > 30


@pytest.mark.slow
def test_tour_runs_from_top_to_bottom(tmp_path):
    code = (
        "import nbclient, nbformat, sys\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(notebook, timeout=300).execute()\n"
        "nbformat.write(notebook, 'tour.ipynb')\n"
    )
    words = [sys.executable, "-c", code, str(ROOT / "docs" / "tour.ipynb")]
    place = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": place, "JAX_NUM_CPU_DEVICES": "1"}
    result = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    cells = json.loads((tmp_path / "tour.ipynb").read_text())["cells"]
    outputs = [out for c in cells for out in c.get("outputs", ())]
    assert "stderr" not in {out.get("name") for out in outputs}
    assert "".join(outputs[-1]["data"]["text/plain"]) == "True"
    assert any("image/png" in out.get("data", {}) for out in outputs)
