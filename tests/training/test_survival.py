"""Whatever happens to a run: nothing is lost, and it ends as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import closing

import numpy as np
import pytest
from test_main import QUICK, ROOT, assert_refused, command, environment, records, train

from configs import digits
from eir_jax.data import pipeline
from eir_jax.experiments.evaluate import evaluate, print_remarks
from eir_jax.system.errors import UserError
from eir_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("one_device")
KILLS = int(os.environ.get("EIR_JAX_KILLS", "2"))  # twenty take some minutes
EPOCHS = KILLS + 4  # each life saves at least one
LONG = [f"--config.num_epochs={EPOCHS}", "--config.eval_every_epochs=0"]
LAST = 11 * EPOCHS


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
        wait_until(
            lambda: (workdir / "metrics.jsonl").exists() and records(workdir), first
        )
        assert_refused(train(workdir), "is in use by process", str(first.pid))
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75
    assert newest(workdir) > 0  # the lock went with its process


def poisoned(make_train_batches, steps):
    """Return it with a ratio that is no number in the batches of some steps."""

    def make(images, config, slots, start_step, *rest):
        batches = make_train_batches(images, config, slots, start_step, *rest)
        with closing(batches):
            for step, batch in enumerate(batches, start_step + 1):
                if step in steps:
                    batch = batch | {"ratio": np.full_like(batch["ratio"], np.nan)}
                yield batch

    return make


@pytest.fixture
def poison(monkeypatch):
    """Return poison(workdir, steps, **changes): train on such batches."""

    def run(workdir, steps, **changes):
        config = digits.get_config()
        config.model.name, config.model.width = "resnet6", 4
        config.data.image_size = 8
        config.num_epochs = 1
        config.log_every_steps = 4
        config.eval_every_epochs = 0
        config.update(changes)
        make = poisoned(pipeline.make_train_batches, steps)
        monkeypatch.setattr("eir_jax.training.loop.make_train_batches", make)
        assert train_and_evaluate(config, workdir) == 0
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        step = config.num_epochs * 22
        meta = json.loads((workdir / f"checkpoints/{step}/meta/metadata").read_text())
        return [json.loads(line) for line in lines], meta

    return run


def test_a_loss_that_is_not_finite_names_its_step(poison, tmp_path):
    with pytest.raises(UserError, match=r"loss_inter is nan at step 5 .* no check"):
        poison(tmp_path / "w", [5])


def test_batches_that_are_not_finite_are_left_out(poison, tmp_path, capsys):
    """Of epoch 0, before any checkpoint, and of epoch 1, after one; told, counted."""
    whole = {"num_epochs": 2, "skip_not_finite": 2, "checkpoint_every_epochs": 1}
    records, meta = poison(tmp_path / "whole", [5, 27], **whole)
    assert meta["skipped"] == [5, 27]
    assert "loss_inter is nan at step 27" in capsys.readouterr().out
    assert [r["step"] for r in records] == list(range(4, 45, 4))
    counted = [r.get("skipped_batches", 0) for r in records]
    assert counted == [0] + [1] * 5 + [2] * 5
    record = evaluate(tmp_path / "whole", tasks=("health",))
    assert record["skipped"] == [5, 27]
    print_remarks(record)
    assert "as not finite: steps [5, 27]" in capsys.readouterr().out
    # In two parts, the second of which knows from the checkpoint what was left out.
    first = whole | {"num_epochs": 1}
    poison(tmp_path / "parts", [5], **first)
    _, again = poison(tmp_path / "parts", [27], **whole)
    assert again["checksums"] == meta["checksums"]


def test_too_many_such_batches_end_the_run(poison, tmp_path):
    with pytest.raises(UserError, match=r"step 7 .*; the batches of steps \[5\] were"):
        poison(tmp_path / "w", [5, 7], skip_not_finite=1)
