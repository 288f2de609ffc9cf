"""A start takes no longer than it must: what is imported, and when."""

import json
import subprocess
import sys

import pytest
from test_main import ROOT

from eir_jax.run.metrics import MetricsWriter

COMMANDS = (
    *("main", "evaluate", "embed", "search", "sweep", "results"),
    *("coefficients", "inspect"),
)
HELP = """
import runpy, sys
sys.argv = ["program", "--help"]
try:
    runpy.run_module("eir_jax.{command}", run_name="__main__")
except SystemExit as stop:
    assert not stop.code
heavy = {{"jax", "tensorflow", "tensorflow_datasets", "flax", "orbax", "matplotlib",
         "sklearn", "scipy", "tensorboard"}}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_library_of_the_work(command):
    result = subprocess.run(
        [sys.executable, "-c", HELP.format(command=command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert f"usage: python -m eir_jax.{command}" in result.stdout


def test_tensorboard_reads_what_is_written(tmp_path):
    """Further starts, from step 0 too, within one second, drop what came after them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (1, 2)), (0, (1, 2, 3)), (2, (3, 4)), (3, (4, 5))):
        writer = MetricsWriter(tmp_path, start)
        for step in steps:
            writer.write(step, {"loss": step + start / 10, "knn": {"5": 0.5}})
        writer.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 4
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss", "knn/5"]
    seen = [(e.step, pytest.approx(e.value)) for e in events.Scalars("loss")]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    written = [(r["step"], r["loss"]) for r in map(json.loads, lines)]
    assert seen == written == [(1, 1), (2, 2), (3, 3.2), (4, 4.3), (5, 5.3)]
