"""Sweeps: what is run, what is left out, and the table, mostly of faked runs."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_main import ROOT, assert_refused, command, environment, run

from eir_jax import sweep as program
from eir_jax.experiments import launch, sweep
from eir_jax.experiments.grid import load_grid
from eir_jax.experiments.runs import read_finished
from eir_jax.run.validate import validate
from eir_jax.system.config import flatten, load_config, save_config
from eir_jax.system.errors import UserError

DIGITS = str(ROOT / "configs" / "digits.py")
GRIDS = sorted(p.stem for p in (ROOT / "configs" / "grids").glob("*.py"))


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def fake_run(workdir, config, knn, *, recall=None, curve=()):
    """Write what a finished run leaves that a table is made of."""
    (workdir / "eval").mkdir(parents=True)
    save_config(config, workdir / "config.json")
    step = config.num_rounds * config.num_epochs * (1437 // config.batch_size)
    record = {
        "step": step,
        "knn": {"5": knn - 0.01, "200": knn},
        "retrieval": {"R@1": recall or knn - 0.1, "MAP@R": 0.2},
        "health": {"rank_me": 3.0},
        "refused": {"linear": "no"},
        "protocol": {
            "data": {"train_images": 1437, "test_images": 360, "content_hash": "0"},
            "transform": "none",
        },
    }
    (workdir / "eval" / f"step_{step}.json").write_text(json.dumps(record))
    lines = [{"step": 1, "epoch": 0.1, "loss": 3.0}]
    lines += [{"step": 2, "epoch": e, "knn": {"200": v}} for e, v in curve]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text + '{"cut sho')


def fake_sweep(folder, grid, values):
    """Write runs of digits for {name: [kNN of seed 0, of seed 1, ...]}."""
    for name, accuracies in values.items():
        for seed, knn in enumerate(accuracies):
            words = [f"--config.{k}={v}" for k, v in grid.settings[name].items()]
            config = load_config(DIGITS, [*words, f"--config.seed={seed}"])
            curve = ((5, knn + 0.02), (10, knn))
            fake_run(folder / name / f"seed{seed}", config, knn, curve=curve)


def words(folder, grid="table1", *more):
    return [f"--config={DIGITS}", f"--grid={grid}", f"--workdir={folder}", *more]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("config", ["digits", "cifar10"])
def test_every_grid_is_valid_and_its_settings_differ(name, config):
    settings = []
    for setting in load_grid(name).settings.values():
        flags = [f"--config.{k}={v}" for k, v in setting.items()]
        c = load_config(f"configs/{config}.py", flags)
        validate(c)
        settings.append(flatten(c))
    assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_imports_what_an_installed_package_has(name):
    text = (ROOT / f"configs/grids/{name}.py").read_text()
    assert not re.search(r"^(from|import) configs\b", text, re.MULTILINE)


def test_grids_are_the_papers():
    table1 = load_grid("table1").settings
    assert list(table1) == ["Random", "IR", "IRaug", "intra", "inter", "EIR"]
    fig3 = load_grid("fig3").settings.values()
    points = {
        (s["interpolation.kind"], s["interpolation.alpha"])
        for s in fig3
        if "interpolation.kind" in s
    }
    alphas = (0.2, 0.5, 1, 2, 4)
    assert points == {(kind, a) for kind in ("mixup", "cutmix") for a in alphas}
    fig4 = load_grid("fig4").settings
    assert fig4["lambda1_15"] == {"lambda_intra": 15.0, "lambda_inter": 0.0}
    assert fig4["lambda2_2"] == {"lambda_intra": 15.0, "lambda_inter": 2.0}
    points = {(s["lambda_intra"], s["lambda_inter"]) for s in fig4.values()}
    wanted = {(x, y) for x in (0, 1, 5, 15, 40, 150) for y in (0, 2)}
    assert points == wanted | {(15, y) for y in (0.5, 1, 4, 8)}


def test_table_has_mean_and_deviation_over_seeds(tmp_path, capsys):
    values = {"IRaug": [0.8, 0.84, 0.85], "EIR": [0.876]}
    fake_sweep(tmp_path, load_grid("table1"), values)
    assert program.main(words(tmp_path, "table1", "--seeds=0,1,2", "--table")) == 0
    assert f"table: {tmp_path / 'table.md'}" in capsys.readouterr().out
    rows = {
        r["name"]: r for r in json.loads((tmp_path / "table.json").read_text())["rows"]
    }
    assert list(rows) == ["Random", "IR", "IRaug", "intra", "inter", "EIR"]
    found = rows["IRaug"]["numbers"]["knn.200"]
    assert found["values"] == values["IRaug"] and rows["IRaug"]["seeds"] == [0, 1, 2]
    assert found["mean"] == pytest.approx(np.mean(values["IRaug"]))
    assert found["deviation"] == pytest.approx(np.std(values["IRaug"], ddof=1))
    assert rows["EIR"]["numbers"]["knn.200"]["deviation"] is None
    lines = (tmp_path / "table.md").read_text().splitlines()
    (iraug,) = (line for line in lines if line.startswith("| IRaug"))
    assert "| lambda_intra=0.0, lambda_inter=0.0 | 3 |" in iraug
    assert "| 83.00 ± 2.65 |" in iraug and "85.00 ± 2.65 (epoch 5)" in iraug
    (intra,) = (line for line in lines if line.startswith("| intra"))
    assert "| 0 | not run | not run | not run |" in intra


def test_runs_under_other_settings_or_unfinished_are_not_in_the_table(tmp_path):
    config = load_config(DIGITS, ["--config.seed=0", "--config.temperature=0.2"])
    fake_run(tmp_path / "EIR" / "seed0", config, 0.9)
    other = load_config(DIGITS, ["--config.seed=1"])
    fake_run(tmp_path / "EIR" / "seed1", other, 0.9)
    (tmp_path / "EIR/seed1/eval/step_550.json").rename(
        tmp_path / "EIR/seed1/eval/step_440.json"
    )
    assert read_finished(tmp_path / "EIR" / "seed1") is None
    program.main(words(tmp_path, "choices", "--seeds=0,1", "--table"))
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert rows[0]["name"] == "EIR" and rows[0]["seeds"] == []


def change_record(workdir, **changes):
    (file,) = (workdir / "eval").iterdir()
    record = json.loads(file.read_text())
    for part, rules in changes.pop("protocol", {}).items():
        record["protocol"][part] = record["protocol"].get(part, {}) | rules
    file.write_text(json.dumps(record | changes))


def states(folder, grid, capsys, *more):
    capsys.readouterr()
    program.main(words(folder, grid, *more, "--dry_run"))
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("part", "rules"),
    [
        ("knn", {"k": [5, 20, 200], "temperature": 5.0}),
        ("knn", {"k": [5, 20], "temperature": 0.1}),
        ("retrieval", {"k": [1]}),
        ("linear", {"solver": "lbfgs"}),
        ("linear", {"features": "last map, averaged over windows of 2x2"}),
    ],
)
def test_what_was_judged_by_other_rules_is_not_finished(tmp_path, capsys, part, rules):
    """As where a sweep is stopped after training noted them and before evaluation."""
    fake_sweep(tmp_path, load_grid("choices"), {"EIR": [0.9, 0.8]})
    right = {"knn": {"k": [5, 20, 200], "temperature": 0.1}}
    for seed in (0, 1):
        more = {"linear": {"top-1": 0.7}, "refused": {}, "protocol": right}
        change_record(tmp_path / f"EIR/seed{seed}", **more)
    change_record(tmp_path / "EIR/seed1", protocol={part: rules})
    found = states(tmp_path, "choices", capsys, "--seeds=0,1", f"--tasks={part}")
    assert found[0] == "finished" and found[6] == "begun"
    # What was not asked for does not matter, but is in no mean.
    others = ",".join({"knn", "retrieval", "linear"} - {part})
    found = states(tmp_path, "choices", capsys, "--seeds=0,1", f"--tasks={others}")
    assert found[0] == found[6] == "finished"
    program.main(words(tmp_path, "choices", "--seeds=0,1", "--table"))
    row = json.loads((tmp_path / "table.json").read_text())["rows"][0]
    assert row["seeds"] == [0, 1]
    assert row["best"][0] and bool(row["best"][1]) == (part != "knn")
    counts = {number: len(x["values"]) for number, x in row["numbers"].items()}
    assert counts == {
        number: 1 if number.startswith(part) else 2
        for number in (
            *("knn.5", "knn.200", "linear.top-1"),
            *("retrieval.R@1", "retrieval.MAP@R"),
        )
    }


def test_seeds_on_other_images_are_never_averaged(tmp_path, capsys):
    fake_sweep(tmp_path, load_grid("choices"), {"EIR": [0.9, 0.8, 0.7]})
    change_record(tmp_path / "EIR/seed1", protocol={"data": {"content_hash": "1"}})
    with pytest.raises(UserError, match=r"on different images \(content 0, 1\)"):
        program.main(words(tmp_path, "choices", "--seeds=0,1", "--table"))
    # One that is not asked for is left out, and said.
    assert program.main(words(tmp_path, "choices", "--seeds=2", "--table")) == 0
    assert "warning: seed 1 is left out: " in capsys.readouterr().err
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert rows[0]["seeds"] == [0, 2]


def test_a_part_of_the_evaluation_is_not_all(tmp_path, capsys):
    fake_sweep(tmp_path, load_grid("choices"), {"EIR": [0.9, 0.8]})
    change_record(tmp_path / "EIR/seed0", refused={})
    (file,) = (tmp_path / "EIR/seed1/eval").iterdir()
    record = json.loads(file.read_text())
    del record["knn"], record["refused"], record["health"]
    file.write_text(json.dumps(record))
    found = states(tmp_path, "choices", capsys, "--seeds=0,1")
    assert found[0] == found[6] == "begun"
    found = states(tmp_path, "choices", capsys, "--seeds=0,1", "--tasks=retrieval")
    assert found[0] == found[6] == "finished"
    # The table holds what there is, and of how many seeds.
    program.main(words(tmp_path, "choices", "--seeds=0,1", "--table"))
    line = (tmp_path / "table.md").read_text().splitlines()[4]
    assert "| 2 | 89.00 (n = 1) | 90.00 (n = 1) | 75.00 ± 7.07 |" in line


def test_a_figure_leaves_out_runs_without_its_number(tmp_path):
    grid = load_grid("fig4")
    fake_sweep(tmp_path, grid, {name: [0.7] for name in grid.settings})
    for name in list(grid.settings)[:2]:
        (file,) = (tmp_path / name / "seed0/eval").iterdir()
        record = json.loads(file.read_text())
        del record["knn"]
        file.write_text(json.dumps(record))
    assert program.main(words(tmp_path, "fig4", "--table")) == 0
    assert (tmp_path / "fig4_lambda1.png").exists()


def test_seeds_of_before_stay_in_the_table(tmp_path):
    fake_sweep(tmp_path, load_grid("table1"), {"EIR": [0.9, 0.8, 0.7]})
    program.main(words(tmp_path, "table1", "--seeds=1", "--table"))
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert rows[-1]["seeds"] == [0, 1, 2]


def test_what_is_recorded_may_differ_and_what_is_damaged_is_not_finished(tmp_path):
    fake_sweep(tmp_path, load_grid("table1"), {"EIR": [0.9, 0.8, 0.7]})
    more = ("--seeds=0,1,2", "--table", "--config.log_every_steps=7")
    (tmp_path / "EIR/seed1/eval/step_550.json").write_text('{"step"')
    (tmp_path / "EIR/seed2/config.json").unlink()
    assert program.main(words(tmp_path, "choices", *more)) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert rows[0]["name"] == "EIR" and rows[0]["seeds"] == [0]


@pytest.mark.parametrize(
    ("grid", "files"),
    [
        ("fig3", ["fig3.png"]),
        ("fig4", ["fig4_lambda1.png", "fig4_lambda2.png"]),
        ("intra", ["intra_temperature.png"]),
    ],
)
def test_curves_are_drawn(tmp_path, grid, files):
    loaded = load_grid(grid)
    rng = np.random.default_rng(0)
    fake_sweep(
        tmp_path, loaded, {n: list(rng.uniform(0.7, 0.8, 2)) for n in loaded.settings}
    )
    assert program.main(words(tmp_path, grid, "--seeds=0,1", "--table")) == 0
    for file in files:
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


def test_figures_wait_for_their_runs(tmp_path):
    tmp_path = tmp_path / "new"
    assert program.main(words(tmp_path, "fig4", "--table")) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"table.md", "table.json"}


def test_dry_run_lists_states_and_commands(tmp_path, capsys):
    fake_sweep(tmp_path, load_grid("table1"), {"IRaug": [0.8]})
    (tmp_path / "EIR/seed0").mkdir(parents=True)
    (tmp_path / "EIR/seed0/config.json").write_text("{}")
    assert program.main(words(tmp_path, "table1", "--seeds=0,7", "--dry_run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("new", "new", "finished", "new", "new", "begun"),
        *["new"] * 6,
    ]
    assert "--config.seed=7 " in lines[6] and "Random/seed7" in lines[6]
    assert not (tmp_path / "table.md").exists()


def test_shards_are_all_runs_once(tmp_path, capsys):
    listed = []
    for part in (1, 2, 3, 4):
        program.main(words(tmp_path, "table1", f"--shard={part}/4", "--dry_run"))
        listed += capsys.readouterr().out.splitlines()
    program.main(words(tmp_path, "table1", "--dry_run"))
    assert sorted(listed) == sorted(capsys.readouterr().out.splitlines())


def test_a_shard_is_not_of_one_setting(tmp_path, capsys):
    """As long as there are seeds: untrained encoders take seconds, EIR hours."""
    more = ("--seeds=0,1,2", "--dry_run")
    program.main(words(tmp_path, "table1", *more))
    every = capsys.readouterr().out.splitlines()
    listed = []
    for part in range(1, 7):
        program.main(words(tmp_path, "table1", f"--shard={part}/6", *more))
        lines = capsys.readouterr().out.splitlines()
        assert len({line.split("--workdir=")[1].split("/")[-2] for line in lines}) == 3
        listed += lines
    assert sorted(listed) == sorted(every)


@pytest.mark.parametrize("grid", ["table1", "fig3", "fig4"])
@pytest.mark.parametrize("count", range(2, 14))
def test_shards_are_of_equal_size_and_of_many_settings(grid, count):
    """Of three seeds no shard has all of a setting that another has none of."""
    grid = load_grid(grid)
    args = argparse.Namespace(config=DIGITS, workdir=Path("w"))
    runs = sweep.plan(args, grid, [], [0, 1, 2])
    shards = [program._shard(f"{part}/{count}", runs) for part in range(1, count + 1)]
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == len(runs)
    for name in grid.settings:
        assert max(sum(r.name == name for r in shard) for shard in shards) < 3


def test_dry_run_prints_what_a_shell_takes(tmp_path, capsys):
    assert program.main(words(tmp_path, "horizon", "--dry_run")) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "--config.optimizer.milestones=(60, 80)" in shlex.split(line)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--grid=tabel1"], "no grid .*; give a file, or one of table1"),
        (["--config.sed=1"], "^there is no setting config.sed; did you mean seed"),
        (["--config.seed=1"], "give --seeds"),
        (["--config.lambda_intra=1"], r"lambda_intra is set by configs/grids/table1"),
        (["--config.batch_size=0"], "batch_size=0 must be at least 1"),
        (["--wrkdir=x"], "^unknown argument"),
        (["--seeds=0,0"], "no list of different numbers"),
        (["--seeds=a"], "no list of different numbers"),
        (["--shard=4/3"], "no part like 1/3"),
        (["--shard=x"], "no part like 1/3"),
        (["--tasks=knm"], "no task 'knm'"),
    ],
)
def test_bad_command_lines_are_refused(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        program.main(words(tmp_path, "table1", *more))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GRID = {'a': {'lambda_intr': 1}}", "'a' of .*; did you mean lambda_intra"),
        ("GRID = {'a': {'temperature': 0}}", "'a' of .*temperature=0.0 must be"),
        ("GRID = {'a/b': {}}", "'a/b' cannot be a folder's name"),
        ("GRID = {'a': {'seed': 1}}", "'a' sets the seed"),
        ("GRID = {'a': 3}", "'a' is no {key: value}"),
        ("GRID = {}", "holds no GRID"),
        ("x = 1", "holds no GRID"),
        ("1 / 0", "fails: ZeroDivisionError"),
        ("import sys; sys.exit()", "fails: SystemExit"),
        ("GRID = {'a': {}, 'b': {}, 'a': {'seed': 1}}", "has 'a' twice in one"),
        ("GRID = {'table.md': {}}", "'table.md' is the sweep's own file"),
        ("GRID = {'a': {}}\nFIGURES = {1: {}}", "1 of FIGURES is no name of a .png"),
        ("GRID = {'a': {}}\nFIGURES = {'table.md': {}}", "'table.md' of FIGURES is no"),
        ("GRID = {'a': {}}\nFIGURES = {'f.png': {'x': 'seed'}}", "needs x and rows"),
        ("GRID = {'a': {}}\nFIGURES = 'x'", "FIGURES is no"),
        ("GRID = {'a': {}}\nFIGURES = {'f.png': 3}", "needs x and rows"),
        (
            "GRID = {'a': {}}\nFIGURES = {'f.png': {'x': 'sed', 'rows': ['a']}}",
            "f.png asks for the setting sed",
        ),
        (
            "GRID = {'a': {}}\nFIGURES = {'f.png': {'x': 'seed', 'rows': []}}",
            "needs x and rows",
        ),
        (
            "GRID = {'a': {}}\nFIGURES = {'f.png': {'x': 'seed', 'rows': ['b']}}",
            "asks for 'b'",
        ),
        ("GRID = {'a': {}}\nFIGURES = {'f.png': {'x': 'seed', 'rows': 3}}", "a list"),
        (
            "GRID = {'a': {}}\nFIGURES = {'f.png': {'x': ['seed'], 'rows': ['a']}}",
            "all others are names",
        ),
        (
            "GRID = {'a': {}}\nFIGURES = {'f.png': {'x': 'data.name', 'rows': ['a']}}",
            "x=data.name, which is no number",
        ),
        (
            "GRID = {'a': {}}\nFIGURES = {'f.png': {'x': 'on_top', 'rows': ['a']}}",
            "x=on_top, which is no number",
        ),
    ],
)
def test_bad_grids_are_refused(tmp_path, text, message):
    file = tmp_path / "grid.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        program.main(words(tmp_path / "w", str(file)))


def test_a_failing_run_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    """With a stand-in for training: 'b' crashes, 'c' ends too early."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        "import glob, sys, pathlib\n"
        "sys.path[:0] = ['.', 'tests', *glob.glob('tests/*/')]\n"
        "from test_sweep import fake_run\n"
        "from eir_jax.system.config import load_config\n"
        "workdir = pathlib.Path(sys.argv[-1].removeprefix('--workdir='))\n"
        "name = workdir.parent.name\n"
        "if sys.argv[1] == 'main':\n"
        "    print('training', name)\n"
        "    if name == 'b':\n"
        "        sys.exit('error: no luck')\n"
        "    config = [w for w in sys.argv if w.startswith('--config.')]\n"
        "    if name == 'a':\n"
        f"        fake_run(workdir, load_config({DIGITS!r}, config), .8)\n"
    )
    monkeypatch.setattr(
        launch, "_module", lambda name: [sys.executable, str(stand_in), name]
    )
    grid = tmp_path / "grid.py"
    grid.write_text(
        "GRID = {'b': {'lambda_intra': 1}, 'c': {'lambda_intra': 2}, 'a': {}}"
    )
    assert program.main(words(tmp_path / "w", str(grid))) == 1
    output = capsys.readouterr()
    log = tmp_path / "w/b/seed0.log"
    assert f"[1/3] b, seed 0: failed: no luck (exit status 1, see {log})" in output.out
    assert "[2/3] c, seed 0: failed: it ended before its last step" in output.out
    assert "[3/3] a, seed 0: finished after 0:" in output.out
    assert "kNN k = 200 80.00 %" in output.out
    assert output.err.startswith("error: 2 of 3 runs failed: b, seed 0: no luck")
    assert log.read_text().startswith("training b")
    # Where a file lies in the way of a run, that one alone fails.
    (tmp_path / "file").mkdir()
    (tmp_path / "file/b").touch()
    assert program.main(words(tmp_path / "file", str(grid))) == 1
    output = capsys.readouterr()
    assert "[1/3] b, seed 0: failed: " in output.out and "be written" in output.out
    assert "[3/3] a, seed 0: finished after 0:" in output.out
    # Again, without the two: the third is not run anew.
    grid.write_text("GRID = {'a': {}}")
    assert program.main(words(tmp_path / "w", str(grid))) == 0
    assert "a, seed 0: finished before, kNN k = 200 80.00 %" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_no_run_goes_on_without_its_sweep(tmp_path, number):
    """A closed terminal too, and on Linux a kill -9, end it as SIGTERM does."""
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent died")
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        f"    pathlib.Path({str(ended)!r}).touch()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    program = (
        "import signal, sys\n"
        "from eir_jax import sweep\n"
        "from eir_jax.experiments import launch\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests' may be nohup's
        f"launch._module = lambda name: [sys.executable, {str(stand_in)!r}]\n"
        "sys.exit(sweep.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words(tmp_path / "w")],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    while not ended.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number != signal.SIGKILL:
        status = {signal.SIGTERM: 75, signal.SIGHUP: 129}[number]
        assert process.returncode == status and b"the same command goes on" in output


def test_a_signal_that_nohup_ignores_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with launch.stop_requests() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert requests == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


QUICK = [
    "--config.batch_size=128",
    "--config.model.name=resnet6",
    "--config.model.width=4",
    "--config.model.embedding_dim=32",
    "--config.eval_every_epochs=1",
    "--config.checkpoint_every_epochs=1",
]


@pytest.mark.slow
def test_a_real_sweep_is_stopped_goes_on_and_is_finished(tmp_path):
    grid = tmp_path / "grid.py"
    grid.write_text("GRID = {'Random': {'num_epochs': 0}, 'EIR': {'num_epochs': 1}}")
    flags = [*words(tmp_path / "w", str(grid), "--tasks=knn,retrieval"), *QUICK]
    process = subprocess.Popen(
        command("sweep", *flags), cwd=ROOT, env=environment(), stdout=subprocess.PIPE
    )
    # As soon as training has made the workdir of the second run its own.
    lock = tmp_path / "w/EIR/seed0/.lock"
    deadline = time.monotonic() + 200
    while not (lock.exists() and lock.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and b"the same command goes on" in output
    assert read_finished(tmp_path / "w/EIR/seed0") is None

    result = run("sweep", *flags)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[1/2] Random, seed 0: finished before" in result.stdout
    assert "[2/2] EIR, seed 0: finished after" in result.stdout
    rows = json.loads((tmp_path / "w" / "table.json").read_text())["rows"]
    for row in rows:
        assert row["seeds"] == [0]
        assert {"knn.200", "retrieval.R@1"} <= row["numbers"].keys()
        assert row["numbers"]["knn.200"]["mean"] > 0.3  # chance: .1
    assert rows[1]["best"][0][1] == 1  # epoch


def test_help_and_refusals_are_quick_and_one_line(tmp_path):
    assert "--shard=1/3" in run("sweep", "--help").stdout
    result = run("sweep", *words(tmp_path, "nothing"))
    assert_refused(result, "there is no grid configs/grids/nothing.py")
    assert_refused(run("sweep", "--grid=table1"), "--config")
