"""Run a grid of settings over seeds: `python -m eir_jax.sweep --config=FILE ...`."""

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from eir_jax import cli
from eir_jax.config import OVERRIDE, flatten, load_config
from eir_jax.errors import UserError
from eir_jax.grid import Grid, load_grid
from eir_jax.runs import (
    FinishedRun,
    check_rules,
    judged_by,
    main_number,
    read_finished,
    title,
)
from eir_jax.sweep_table import Finished, draw_figures, write_table
from eir_jax.validate import validate
from eir_jax.workdir import RECORDING_KEYS

DESCRIPTION = """\
Train and evaluate each setting of a grid with each seed, one after another, in
DIR/NAME/seedK, and write a table of all that is finished there, of these seeds and
others, DIR/table.md and .json. E.g.

  python -m eir_jax.sweep --config=configs/digits.py --grid=table1 --seeds=0,1,2 \\
      --workdir=runs/digits_table1

Started again, it leaves out what is finished and goes on with what was stopped. On
several machines that share DIR give each its part: --shard=1/3, 2/3, 3/3. Any setting
that the grid does not set can be given for all runs as --config.KEY=VALUE.
"""
TASKS = ("knn", "linear", "retrieval", "health")
# On Linux: become the command, which gets SIGTERM (15) where the sweep is killed. (A
# preexec_fn would do that too, but not where threads have been started.)
PR_SET_PDEATHSIG = 1
END_WITH_PARENT = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, 15); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Planned(NamedTuple):
    """A run of the sweep."""

    name: str
    seed: int
    workdir: Path
    flags: list[str]
    """Of `eir_jax.main`, without --workdir."""
    config: ConfigDict

    @property
    def log(self) -> Path:
        """The file of all that the run prints."""
        return self.workdir.with_suffix(".log")


def main(argv: list[str]) -> int:
    """Parse the command line and run the sweep; return the exit status.

    0 where all went well or SIGTERM or SIGHUP stopped it, 1 where a run failed, 130 by
    SIGINT.
    """
    parser = cli.Parser(prog="eir_jax.sweep", description=DESCRIPTION)
    parser.add_argument("--config", required=True, help="a file such as configs/*.py")
    parser.add_argument(
        "--grid", required=True, help="a file, or one of configs/grids by its name"
    )
    parser.add_argument("--seeds", default="0", help="such as 0,1,2 (default: 0)")
    parser.add_argument("--workdir", required=True, type=Path, help="of all the runs")
    parser.add_argument("--shard", default="1/1", help="the I-th of N parts: I/N")
    parser.add_argument(
        "--tasks",
        default="",
        help=f"of the evaluation: any of {','.join(TASKS)} (default: all that the data "
        "allows, and pictures)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="list the runs and their state alone"
    )
    parser.add_argument("--table", action="store_true", help="write the table alone")
    args, overrides = parser.parse_known_args(argv)
    grid = load_grid(args.grid)
    tasks = _tasks(args.tasks)
    seeds = _seeds(args.seeds)
    runs = plan(args, grid, overrides, seeds)
    shard = _shard(args.shard, runs)
    if args.dry_run:
        for run in shard:
            print(f"{_state(run, tasks):9} {shlex.join(_command('main', run))}")
        return 0
    failed: dict[str, str] = {}
    if not args.table:
        with _stop_requests() as requests:
            failed = run_all(shard, tasks, requests)
        if requests:
            print("stopped; the same command goes on")
            return 130 if requests[0] == signal.SIGINT else 0
    if failed:
        words = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        message = f"error: {len(failed)} of {len(shard)} runs failed: {words}"
        print(message, file=sys.stderr)
    others = sorted(_seeds_in(args.workdir, grid) - {*seeds})
    finished: Finished = {name: [] for name in grid.settings}
    for run in runs + plan(args, grid, overrides, others):
        found = read_planned(run)
        if found is None or not _is_evaluated(found, tasks):
            continue
        try:
            check_rules([*finished[run.name], found])
        except UserError as error:
            if run.seed in seeds:
                raise
            print(f"warning: seed {run.seed} is left out: {error}", file=sys.stderr)
            continue
        finished[run.name].append(found)
    for runs_of_setting in finished.values():
        runs_of_setting.sort(key=lambda run: run.settings["seed"])
    print(f"table: {write_table(args.workdir, grid, finished)}")
    for path in draw_figures(args.workdir, grid, finished):
        print(f"figure: {path}")
    return 1 if failed else 0


def plan(
    args: argparse.Namespace, grid: Grid, overrides: list[str], seeds: list[int]
) -> list[Planned]:
    """Return all runs, all settings of the first seed first, their settings checked.

    Args:
      args: with `config` and `workdir`.
      grid: the settings.
      overrides: words `--config.key=value` for every run.
      seeds: each for every setting.

    Raises:
      UserError: a setting is unknown, impossible, or given twice.
    """
    # What is wrong of these is not the grid's.
    known = flatten(load_config(args.config, overrides))
    for file, figure in grid.figures.items():
        for key in (figure["x"], figure.get("lines", "seed")):
            if key not in known:
                raise UserError(
                    f"{grid.path}: {file} asks for the setting {key}, which there is "
                    "not; see configs/base.py"
                )
        if not isinstance(known[figure["x"]], (int, float)):
            raise UserError(
                f"{grid.path}: {file} has x={figure['x']}, which is no number"
            )
    for word in overrides:
        match = OVERRIDE.fullmatch(word)
        key = match[1] if match else ""
        if key == "seed":
            raise UserError("config.seed is the sweep's; give --seeds")
        if any(key in setting for setting in grid.settings.values()):
            raise UserError(
                f"config.{key} is set by {grid.path}; change it there, or in a copy"
            )
    runs = []
    for seed in seeds:
        for name, setting in grid.settings.items():
            words = [f"--config.{key}={value}" for key, value in setting.items()]
            words = [*overrides, *words, f"--config.seed={seed}"]
            try:
                config = load_config(args.config, words)
                validate(config)
            except UserError as error:
                raise UserError(f"'{name}' of {grid.path}: {error}") from None
            flags = [f"--config={args.config}", *words]
            workdir = args.workdir / name / f"seed{seed}"
            runs.append(Planned(name, seed, workdir, flags, config))
    return runs


def is_finished(run: Planned, tasks: tuple[str, ...]) -> bool:
    """Tell whether the last step is evaluated by all `tasks`, under these settings.

    But for the tasks that the data does not allow.
    """
    found = read_planned(run)
    return found is not None and _is_evaluated(found, tasks)


def read_planned(run: Planned) -> FinishedRun | None:
    """Return a run that is finished under its settings, None of any other.

    Settings of what is recorded may differ. What cannot be read is not finished. The
    parts of the evaluation that were judged by other rules are left out: training,
    begun again, notes the rules that are wanted now before it is evaluated by them.
    """
    try:
        found = read_finished(run.workdir)
    except UserError:
        return None
    wanted = flatten(run.config)
    if found is None or any(
        found.settings.get(key) != wanted.get(key)
        for key in found.settings.keys() | wanted.keys()
        if not key.startswith(RECORDING_KEYS)
    ):
        return None
    as_json = json.loads(json.dumps(wanted))
    wrong = {
        key.partition(".")[0]
        for key, rule in judged_by(found).items()
        if rule != as_json[key]
    }

    def less(parts: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in parts.items() if k.partition(".")[0] not in wrong}

    record = less(found.record) | {"protocol": less(found.record["protocol"])}
    numbers = less(found.numbers)
    is_judge = main_number(numbers) == main_number(found.numbers)
    best = found.best if is_judge else None
    return found._replace(record=record, numbers=numbers, best=best)


def run_all(
    runs: list[Planned], tasks: tuple[str, ...], requests: list[int]
) -> dict[str, str]:
    """Train and evaluate what is not finished; return {run: why it failed}.

    Args:
      runs: in their order.
      tasks: of the evaluation; none: all that the data allows.
      requests: signals; with the first one the run at hand is saved, and no more begun.
    """
    failed = {}
    for number, run in enumerate(runs, 1):
        name = f"{run.name}, seed {run.seed}"
        place = f"[{number}/{len(runs)}] {name}:"
        if is_finished(run, tasks or TASKS):
            print(f"{place} finished before, {_result(run)}", flush=True)
            continue
        print(f"{place} running, what it prints is in {run.log}", flush=True)
        began = time.monotonic()
        reason = _train_and_evaluate(run, tasks, requests)
        if requests:
            break
        if reason:
            failed[name] = reason
            print(f"{place} failed: {reason}", flush=True)
        else:
            minutes, seconds = divmod(round(time.monotonic() - began), 60)
            took = f"{minutes}:{seconds:02} min"
            print(f"{place} finished after {took}, {_result(run)}", flush=True)
    return failed


def _train_and_evaluate(
    run: Planned, tasks: tuple[str, ...], requests: list[int]
) -> str:
    """Return why it failed, '' where it did not.

    In processes of their own: a crash takes nothing with it, and memory is given back.
    """
    try:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.log.touch()
    except OSError as error:
        return f"{run.log} cannot be written: {error}"
    evaluate = [*_module("evaluate"), f"--workdir={run.workdir}"]
    if tasks:
        evaluate.append(f"--tasks={','.join(tasks)}")
    for command in (_command("main", run), evaluate):
        status = _call(command, run.log, requests)
        if requests:
            return "stopped"
        if status:
            return f"{_last_line(run.log)} (exit status {status}, see {run.log})"
    if not is_finished(run, tasks or TASKS):
        return f"it ended before its last step (see {run.log}); start again to go on"
    return ""


def _call(command: list[str], log: Path, requests: list[int]) -> int:
    """Run a command, all it prints going to `log`; return its status.

    It has a session of its own, so that Ctrl-C reaches it by `requests` alone: as
    SIGTERM, on which training saves and ends. On Linux it gets that too where the sweep
    is killed, so that no run goes on without it.
    """
    if sys.platform == "linux":
        command = [sys.executable, "-c", END_WITH_PARENT, *command]
    with log.open("a") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        told = 0
        while process.poll() is None:
            if told < len(requests):
                process.terminate()
                told += 1
            time.sleep(0.1)
    return process.returncode


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect the signals that stop, for the run at hand to be saved.

    What is ignored, as SIGHUP under nohup, stays so.
    """
    requests: list[int] = []
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {n: signal.signal(n, lambda n, _: requests.append(n)) for n in numbers}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"eir_jax.{name}"]


def _command(module: str, run: Planned) -> list[str]:
    return [*_module(module), *run.flags, f"--workdir={run.workdir}"]


def _state(run: Planned, tasks: tuple[str, ...]) -> str:
    if is_finished(run, tasks or TASKS):
        return "finished"
    return "begun" if (run.workdir / "config.json").exists() else "new"


def _result(run: Planned) -> str:
    found = read_finished(run.workdir)
    assert found is not None
    number = main_number(found.numbers)
    if number is None:
        return "evaluated"
    return f"{title(number)} {100 * found.numbers[number]:.2f} %"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return lines[-1].removeprefix("error: ")[:300]


def _is_evaluated(run: FinishedRun, tasks: tuple[str, ...]) -> bool:
    refused = run.record.get("refused", {})
    return all(task in run.record or task in refused for task in tasks)


def _seeds(text: str) -> list[int]:
    seeds = [int(word) for word in text.split(",") if word.isdecimal()]
    if len(set(seeds)) != len(text.split(",")):
        raise UserError(f"--seeds={text} is no list of different numbers like 0,1,2")
    return seeds


def _seeds_in(workdir: Path, grid: Grid) -> set[int]:
    """Return the seeds of all runs that a sweep left there."""
    folders = (path for name in grid.settings for path in (workdir / name).glob("*"))
    matches = (re.fullmatch(r"seed(\d+)", path.name) for path in folders)
    return {int(match[1]) for match in matches if match}


def _tasks(text: str) -> tuple[str, ...]:
    tasks = tuple(task for task in text.split(",") if task)
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"there is no task '{task}'; choose of {','.join(TASKS)}")
    return tasks


def _shard(text: str, runs: list[Planned]) -> list[Planned]:
    """Return a part: as many runs as another, or one more.

    The settings change parts from seed to seed, as times differ: where the parts would
    have it that they do not, the settings of each seed begin one later.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= count:
        raise UserError(f"--shard={text} is no part like 1/3, 2/3 or 3/3")
    per_seed = len(runs) // len({run.seed for run in runs})
    begin_later = per_seed % count == 0

    def number(i: int) -> int:
        seed, setting = divmod(i, per_seed)
        return seed * per_seed + (setting - seed * begin_later) % per_seed

    return [run for i, run in enumerate(runs) if number(i) % count == part - 1]


if __name__ == "__main__":
    cli.run(main)
