"""Whatever happens to a run: nothing is lost, and it ends as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
from test_main import QUICK, ROOT, assert_refused, command, environment, train

KILLS = int(os.environ.get("EIR_JAX_KILLS", "3"))  # twenty take some minutes
LONG = ["--config.num_epochs=10", "--config.eval_every_epochs=0"]
LAST = 110


def start(workdir, log):
    """Start training in the background."""
    words = ["--config=configs/digits.py", f"--workdir={workdir}", *QUICK, *LONG]
    return subprocess.Popen(
        command("main", *words), cwd=ROOT, env=environment(), stdout=log, stderr=log
    )


def wait_until(holds, process):
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return
        time.sleep(0.001)


def newest(workdir):
    steps = [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal()]
    return max(steps, default=0)


def checksums(workdir):
    notes = workdir / "checkpoints" / str(LAST) / "meta" / "metadata"
    return json.loads(notes.read_text())["checksums"]


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_nothing(tmp_path):
    """Every second kill falls into a save: its folder still has Orbax's ending."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, *LONG).returncode == 0
    rng = random.Random(0)
    saving = 0
    for life in range(KILLS):
        before = newest(killed)
        with (tmp_path / f"life{life}.log").open("w") as log:
            process = start(killed, log)
            wait_until(lambda: newest(killed) > before, process)  # noqa: B023
            if life % 2:
                wait_until(lambda: any(killed.glob("checkpoints/*-tmp*")), process)
            else:
                time.sleep(rng.uniform(0, 0.5))
            process.kill()
            process.wait()
        saving += any(killed.glob("checkpoints/*-tmp*"))
        assert before <= newest(killed) <= LAST
    assert saving or KILLS < 2
    result = train(killed, *LONG)
    assert result.returncode == 0, result.stderr
    assert "is damaged" not in result.stderr
    assert checksums(killed) == checksums(whole)


def test_a_second_run_on_one_workdir_is_refused(tmp_path):
    workdir = tmp_path / "shared"
    with (tmp_path / "log").open("w") as log:
        first = start(workdir, log)
        wait_until((workdir / "metrics.jsonl").exists, first)
        assert_refused(train(workdir), "is in use by process", str(first.pid))
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
    assert newest(workdir) > 0  # the lock went with its process
