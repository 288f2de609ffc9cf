"""docs/extending.md does what it says: its code is run as it stands there."""

import importlib
import json
import re
from pathlib import Path

import pytest

from configs import digits
from eir_jax.data.sources import SOURCES
from eir_jax.evaluation import restore
from eir_jax.evaluation.tasks import TASKS
from eir_jax.models.resnet import BLOCKS
from eir_jax.training import parts
from eir_jax.training.loop import train_and_evaluate

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
MOST_LINES = 25


@pytest.fixture(scope="module")
def examples():
    """Return {heading: code}."""
    found = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        heading = section.splitlines()[0]
        (found[heading],) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return found


def run(code):
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_examples_are_short(examples):
    assert {"A data set", "A backbone", "An objective", "An evaluation"} == set(
        examples
    )
    for heading, code in examples.items():
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES, heading


@pytest.fixture
def tables():
    """Take out of the dictionaries what a test puts in."""
    before = [(table, dict(table)) for table in (SOURCES, BLOCKS, TASKS)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


def test_all_four_together(examples, tables, tmp_path, monkeypatch, one_device, capsys):
    """A new system with a new backbone on a new data set, judged by a new task."""
    for heading in ("A data set", "A backbone", "An evaluation"):
        run(examples[heading])
    make = run(examples["An objective"])["align_and_spread"]
    for module in (parts, restore):  # as a case in systems.py would
        monkeypatch.setattr(module, "make_objective", make)
    config = digits.get_config()
    config.update_from_flattened_dict(
        {
            "data.source": "stripes",
            "data.name": "stripes",
            "data.image_size": 8,
            "model.name": "resnet14",
            "model.width": 4,
            "batch_size": 32,
            "num_epochs": 1,
            "log_every_steps": 4,
            "knn.k": (1, 5),
        }
    )
    assert train_and_evaluate(config, tmp_path / "w") == 0
    lines = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["loss_spread"] for line in lines[:1])
    words = [f"--workdir={tmp_path / 'w'}", "--tasks=knn,silhouette"]
    assert importlib.import_module("eir_jax.evaluate").main(words) == 0
    assert "silhouette of stripes" in capsys.readouterr().out
    record = json.loads((tmp_path / "w" / "eval" / "step_8.json").read_text())
    assert -1 <= record["silhouette"]["cosine"] <= 1
    assert record["protocol"]["silhouette"]["metric"] == "silhouette, cosine"
    assert "knn_bank" not in record  # this system has none
