"""The program as users run it: subprocesses, their output, status and files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import overwrite

ROOT = Path(__file__).parent.parent
QUICK = [
    "--config.data.image_size=8",
    "--config.num_epochs=2",
    "--config.batch_size=128",
    "--config.model.name=resnet6",
    "--config.model.width=4",
    "--config.model.embedding_dim=32",
    "--config.optimizer.learning_rate=0.01",
    "--config.eval_every_epochs=1",
    "--config.checkpoint_every_epochs=1",
    "--config.log_every_steps=1",
]


def command(module, *words):
    return [sys.executable, "-m", f"eir_jax.{module}", *map(str, words)]


def environment(devices=1):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}


def run(module, *words, devices=1):
    return subprocess.run(
        command(module, *words),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(workdir, *words, config="digits", quick=True, devices=1):
    return run(
        "main",
        f"--config=configs/{config}.py",
        f"--workdir={workdir}",
        *(QUICK if quick else []),
        *words,
        devices=devices,
    )


def assert_refused(result, *parts):
    """Bad input ends in one line on stderr that says `parts`, and in status 2."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert lines[-1].startswith("error: ") and "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[-1]
    return lines


def records(workdir, kind="loss"):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if kind in r]


def without_speed(workdir):
    return [
        {k: v for k, v in r.items() if k != "images_per_second"}
        for r in records(workdir)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the workdir of a finished quick run."""
    workdir = tmp_path_factory.mktemp("run") / "digits"
    result = train(workdir)
    assert result.returncode == 0, result.stderr
    assert "22 steps of 128" in result.stdout
    return workdir


def test_workdir_holds_what_is_promised(trained):
    assert {p.name for p in trained.iterdir()} == {
        ".lock",
        "config.json",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
    }
    steps = records(trained)
    assert [r["step"] for r in steps] == list(range(1, 23))
    assert steps[0].keys() == {
        *("step", "epoch", "loss", "loss_instance", "loss_intra", "loss_inter"),
        *("learning_rate", "images_per_second", "embedding_std", "bank_drift"),
        "gradient_norm",
        *("alignment", "positive_rank", "entropy_p", "entropy_q"),
    }
    for r in steps:
        total = r["loss_instance"] + 500 * r["loss_intra"] + 2 * r["loss_inter"]
        assert r["loss"] == pytest.approx(total, rel=1e-5)
    knn = records(trained, "knn")
    assert [(r["step"], r["epoch"]) for r in knn] == [(11, 1), (22, 2)]
    assert list(knn[0]["knn"]) == ["5", "20", "200"]
    compared = {"nearest_by_pixels", "same_class", "same_class_by_pixels"}
    spread = {"rank_me", "uniformity", "embedding_std"}
    assert knn[0]["health"].keys() == spread | compared


@pytest.fixture(scope="module")
def evaluated(trained):
    """Return what evaluating that run printed."""
    result = run("evaluate", f"--workdir={trained}")
    assert result.returncode == 0, result.stderr
    return result


def test_evaluate_writes_numbers_with_their_protocol(trained, evaluated):
    record = json.loads((trained / "eval" / "step_22.json").read_text())
    assert record.keys() >= {"step", "knn", "linear", "retrieval", "health", "protocol"}
    assert list(record["knn"]) == ["5", "20", "200"]
    assert list(record["retrieval"])[:4] == ["R@1", "R@2", "R@4", "R@8"]
    assert min(record["knn"].values()) > 0.3  # chance: .1
    assert record["linear"]["top-1"] > 0.5
    for value in (*record["knn"].values(), *record["retrieval"].values()):
        assert 0 < value <= 1
        assert f"{100 * value:.2f}" in evaluated.stdout
    # The numbers that training noted at the same step come from the same functions.
    noted = records(trained, "knn")[-1]
    assert noted["knn"] == record["knn"]
    assert noted["protocol"] == record["protocol"]["knn"]["hash"]
    protocol = record["protocol"]
    assert protocol["knn"]["k"] == [5, 20, 200]
    assert protocol["knn"]["temperature"] == 0.1
    assert protocol["data"]["source"] == "digits"
    assert len(protocol["data"]["content_hash"]) == 64
    for task in ("knn", "linear", "retrieval", "health"):
        assert len(protocol[task]["hash"]) == 12
    for name in ("neighbours", "tsne", "training"):
        png = (trained / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 5000
    report = (trained / "report.html").read_text()
    assert report.count("data:image/png;base64") == 3
    assert "R-precision" in report and protocol["knn"]["hash"] in report


def test_evaluate_takes_a_step_and_tasks_on_eight_devices(trained):
    result = run(
        "evaluate", f"--workdir={trained}", "--step=11", "--tasks=knn", devices=8
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((trained / "eval" / "step_11.json").read_text())
    assert "knn" in record and not record.keys() & {"linear", "retrieval", "health"}
    noted = records(trained, "knn")[0]["knn"]
    for k, value in record["knn"].items():
        assert value == pytest.approx(noted[k], abs=1.5 / 360)


def test_best_and_compare(trained, tmp_path):
    """The report of one run beside another, and Fig. 6 with a row for each."""
    mine = tmp_path / "mine"
    shutil.copytree(trained, mine)
    shutil.copytree(trained, tmp_path / "other")
    result = run(
        "evaluate",
        f"--workdir={mine}",
        "--step=best",
        "--tasks=retrieval,figures",
        f"--compare={tmp_path / 'other'}",
    )
    assert result.returncode == 0, result.stderr
    knn = {r["step"]: r["knn"]["200"] for r in records(mine, "knn")}
    best = max(knn, key=lambda step: (knn[step], step))
    record = json.loads((mine / "eval" / f"step_{best}.json").read_text())
    assert record["step"] == best
    assert str(tmp_path / "other") in (mine / "report.html").read_text()


def test_evaluation_can_be_set_otherwise(trained, evaluated, tmp_path):
    """Other k, and the probe on the pooled map with augmentation; protocols say so."""
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    before = json.loads((trained / "eval" / "step_22.json").read_text())["protocol"]
    result = run(
        "evaluate",
        f"--workdir={workdir}",
        "--tasks=knn,linear",
        "--config.knn.k=1,3",
        "--config.linear.augment=true",
        "--config.linear.pooled_map=true",
        "--config.linear.num_epochs=2",
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((workdir / "eval" / "step_22.json").read_text())
    assert list(record["knn"]) == ["1", "3"]
    assert record["protocol"]["linear"]["feature_dim"] == 4 * 8  # width 4, a 1x1 map
    assert "augmented views" in record["protocol"]["linear"]["trained_on"]
    for task in ("knn", "linear"):
        assert record["protocol"][task]["hash"] != before[task]["hash"]
    w = f"--workdir={workdir}"
    assert_refused(run("evaluate", w, "--config.seed=1"), "settled by the run", "knn.*")
    result = run("evaluate", w, "--tasks=knn", "--config.knn.k=9998,9999")
    assert_refused(result, "knn.k=9998,9999 asks for more than the 1,437")


def test_output_that_cannot_be_written_is_refused(trained, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("eval", "figures"))
    for name, task in (("figures", "figures"), ("eval", "health")):
        shutil.rmtree(workdir / name, ignore_errors=True)
        (workdir / name).write_text("in the way")
        result = run("evaluate", f"--workdir={workdir}", f"--tasks={task}")
        assert_refused(result, str(workdir / name), "cannot be written")


def test_a_run_that_is_only_readable_is_evaluated_elsewhere(trained, tmp_path):
    """The run may belong to another: nothing of it is touched."""

    def times():
        return {p: p.stat().st_mtime_ns for p in trained.rglob("*")}

    before, out = times(), tmp_path / "o"
    result = run("evaluate", f"--workdir={trained}", "--tasks=knn", f"--out={out}")
    assert result.returncode == 0, result.stderr
    assert times() == before
    record = json.loads((out / "eval" / "step_22.json").read_text())
    assert record["knn"] and (out / "report.html").exists()


def test_coefficient_curves_are_drawn_from_runs(trained, evaluated, tmp_path):
    words = ["--x=lambda_intra", f"--out={tmp_path / 'c.png'}", trained]
    assert run("coefficients", *words).returncode == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert_refused(run("coefficients", "--y=knn.7", *words), "holds no knn.7", "knn.5")
    assert_refused(run("coefficients", *words, tmp_path), "is no workdir")


def test_started_again_it_is_done(trained):
    result = train(trained)
    assert result.returncode == 0
    assert "already trained" in result.stdout


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_signal_saves_and_ends(tmp_path, number, status):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(
        [
            *command(
                "main", "--config=configs/digits.py", f"--workdir={workdir}", *QUICK
            ),
            "--config.num_epochs=1000",
            "--config.eval_every_epochs=0",
            "--config.checkpoint_every_epochs=1000",
        ],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (workdir / "metrics.jsonl").exists() or not records(workdir):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == status
    assert "saved; the same command goes on" in output
    assert len(list((workdir / "checkpoints").iterdir())) == 1


def test_damaged_newest_checkpoint_falls_back_loudly(trained, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained, workdir)
    overwrite(workdir / "checkpoints" / "22")
    result = run("evaluate", f"--workdir={workdir}", "--tasks=retrieval")
    assert result.returncode == 0
    assert "checkpoint 22 is damaged" in result.stderr
    assert (workdir / "eval" / "step_11.json").exists()
    assert_refused(
        run("evaluate", f"--workdir={workdir}", "--step=22"), "checkpoint 22 is damaged"
    )
    result = train(workdir)
    assert result.returncode == 0, result.stderr
    assert "checkpoint 22 is damaged" in result.stderr
    assert without_speed(workdir) == without_speed(trained)
    overwrite(workdir / "checkpoints" / "11")
    overwrite(workdir / "checkpoints" / "22")
    assert_refused(train(workdir), "every checkpoint in", "is damaged")


def test_what_is_not_finite_is_named_with_its_step(tmp_path):
    result = train(tmp_path / "w", "--config.optimizer.learning_rate=1e30")
    assert_refused(result, " is nan at step 2", "no checkpoint yet")


def test_collapse_is_said_while_training_and_in_the_report(tmp_path):
    """A learning rate of 100 makes all embeddings alike without a NaN."""
    result = train(tmp_path / "w", "--config.optimizer.learning_rate=100")
    assert result.returncode == 0, result.stderr
    assert "WARNING: the embedding has collapsed" in result.stdout
    assert "has collapsed" in records(tmp_path / "w", "warning")[0]["warning"]
    result = run("evaluate", f"--workdir={tmp_path / 'w'}", "--tasks=health")
    assert "warning: the embedding has collapsed" in result.stdout
    assert "has collapsed" in (tmp_path / "w" / "report.html").read_text()


def test_other_settings_are_refused(trained):
    result = train(trained, "--config.temperature=0.2", "--config.seed=1")
    assert_refused(
        result, "another config", "temperature: 0.1 there, 0.2 here", "seed: 0 there"
    )
    assert train(trained, "--config.eval_every_epochs=7").returncode == 0


def test_a_full_disk_is_one_line(tmp_path):
    """Of a checkpoint many files are written at once, and all of them fail."""
    result = subprocess.run(
        [
            *("bash", "-c", 'ulimit -f 30; exec "$@"', "bash"),  # KiB, of each file
            *command("main", "--config=digits", f"--workdir={tmp_path}", *QUICK),
        ],
        cwd=ROOT,
        env=environment() | {"JAX_ENABLE_COMPILATION_CACHE": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "make room" in line


def test_bad_command_lines_are_refused(tmp_path):
    w = f"--workdir={tmp_path / 'w'}"
    config = "--config=configs/digits.py"
    assert_refused(run("main", w), "--config")
    assert_refused(run("main", "--config=configs/digit.py", w), "configs/digits.py?")
    assert_refused(run("main", config, w, "--config.sed=1"), "did you mean seed")
    assert_refused(run("main", config, w, "--config.seed=x"), "whole number")
    assert_refused(run("main", config, w, "--config.batch_size=2000"), "1,437 training")
    assert_refused(
        run("main", config, w, "--config.batch_size=100", devices=8), "use 96 or 104"
    )
    assert_refused(run("main", config, "--workdir=/proc/x"), "cannot be written")
    assert not (tmp_path / "w" / "config.json").exists()


def test_nothing_to_evaluate_is_refused(trained, tmp_path):
    assert_refused(run("evaluate", f"--workdir={tmp_path}"), "is no workdir")
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    assert_refused(run("evaluate", f"--workdir={tmp_path}"), "no checkpoint yet")
    changed = json.loads((trained / "config.json").read_text())
    changed["model"]["width"] = 8
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert_refused(run("evaluate", f"--workdir={tmp_path}"), "'width': 4", "'width': 8")
    w = f"--workdir={trained}"
    assert_refused(run("evaluate", w, "--step=5"), "no checkpoint of step 5", "11, 22")
    assert_refused(run("evaluate", w, "--tasks=knm"), "no task 'knm'")


def save_arrays(path, count=140, labels=True):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", count), ("test", 40)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8, 3), np.uint8)
        if labels:
            arrays[f"{split}_labels"] = rng.integers(0, 3, n).astype(np.int32)
    np.savez(path, **arrays)
    return path


ARRAYS = [
    "--config.data.source=arrays",
    "--config.data.image_size=8",
    "--config.model.name=resnet6",
    "--config.knn.k=5,20",
]


def test_arrays_without_labels_train_but_are_not_evaluated(tmp_path):
    path = save_arrays(tmp_path / "a.npz", labels=False)
    workdir = tmp_path / "w"
    words = [*ARRAYS, f"--config.data.path={path}"]
    result = train(workdir, *words, config="cifar10")
    assert result.returncode == 0, result.stderr
    assert not records(workdir, "knn")
    assert_refused(run("evaluate", f"--workdir={workdir}", "--tasks=knn"), "labels")
    result = run("evaluate", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    for task in ("kNN", "linear probe", "retrieval"):
        assert f"without {task}: " in result.stdout
    assert "rank_me" in result.stdout
    (file,) = (workdir / "eval").iterdir()
    refused = json.loads(file.read_text())["refused"]
    assert refused.keys() == {"knn", "linear", "retrieval"}
    # Other images under the same settings are refused, at training and evaluation.
    other = save_arrays(tmp_path / "b.npz", count=141)
    words = [*ARRAYS, f"--config.data.path={other}", "--config.num_epochs=3"]
    assert_refused(train(workdir, *words, config="cifar10"), "other training images")
    assert_refused(
        run("evaluate", f"--workdir={workdir}", f"--data_path={other}"),
        "not those of the checkpoint",
    )


def test_bad_arrays_are_refused(tmp_path):
    good = save_arrays(tmp_path / "good.npz").read_bytes()
    truncated = tmp_path / "truncated.npz"
    truncated.write_bytes(good[: len(good) // 2])
    shape = tmp_path / "shape.npz"
    np.savez(shape, train_images=np.zeros((150, 8, 8), np.uint8))
    for path in (tmp_path / "absent.npz", truncated, shape):
        result = train(
            tmp_path / "w", *ARRAYS, f"--config.data.path={path}", config="cifar10"
        )
        assert_refused(result, path.name)


def test_data_set_that_cannot_be_had_is_refused_within_seconds(tmp_path):
    began = time.monotonic()
    result = train(
        tmp_path / "w", f"--config.data.path={tmp_path}", config="cifar10", quick=False
    )
    assert_refused(result, "cifar10", "arrays")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("module", ["main", "evaluate"])
def test_help_is_quick_and_says_how(module):
    began = time.monotonic()
    result = run(module, "--help")
    assert result.returncode == 0 and "--workdir" in result.stdout
    assert time.monotonic() - began < 5  # about .2 s on a quiet machine
