"""Run a grid of settings over seeds: `python -m eir_jax.sweep --config=FILE ...`."""

import re
import shlex
import sys
from typing import TYPE_CHECKING

from eir_jax.system import cli, files
from eir_jax.system.errors import UserError
from eir_jax.system.words import counted

if TYPE_CHECKING:
    from eir_jax.experiments.sweep import Planned
    from eir_jax.experiments.sweep_table import Finished

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


def main(argv: list[str]) -> int:
    """Parse the command line and run the sweep; return the exit status.

    0 where all went well, 1 where a run failed; stopped before the end: 75 by SIGTERM
    (EX_TEMPFAIL: to be started again), 130 by SIGINT, 129 by SIGHUP.
    """
    from eir_jax.experiments.grid import load_grid
    from eir_jax.experiments.launch import (
        EXIT_CODES,
        command_of,
        run_all,
        stop_requests,
    )
    from eir_jax.experiments.runs import check_rules
    from eir_jax.experiments.sweep import (
        TASKS,
        is_evaluated,
        plan,
        progress_of,
        read_planned,
        seeds_in,
    )
    from eir_jax.experiments.sweep_table import draw_figures, write_table

    parser = cli.Parser(prog="eir_jax.sweep", description=DESCRIPTION)
    parser.add_argument(
        "--config", required=True, type=cli.path, help="a file such as configs/*.py"
    )
    parser.add_argument(
        "--grid",
        required=True,
        type=cli.path,
        help="a file, or one of configs/grids by its name",
    )
    parser.add_argument("--seeds", default="0", help="such as 0,1,2 (default: 0)")
    parser.add_argument(
        "--workdir", required=True, type=cli.path, help="of all the runs"
    )
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
    from eir_jax.run.validate import check_data_there

    grid = load_grid(str(args.grid))
    tasks = _tasks(args.tasks, TASKS)
    seeds = _seeds(args.seeds)
    runs = plan(args, grid, overrides, seeds)
    shard = _shard(args.shard, runs)
    if args.dry_run:
        for run in shard:
            print(f"{progress_of(run, tasks):9} {shlex.join(command_of('main', run))}")
        return 0
    files.check_folder(args.workdir)
    failed: dict[str, str] = {}
    if not args.table:
        for run in shard:
            check_data_there(run.config.data)
        with stop_requests() as requests:
            failed = run_all(shard, tasks, requests)
        if requests:
            print("stopped; the same command goes on")
            return EXIT_CODES[requests[0]]
    if failed:
        words = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        number = f"{len(failed)} of {counted(len(shard), 'run')} failed"
        message = f"error: {number}: {words}"
        print(message, file=sys.stderr)
    others = sorted(seeds_in(args.workdir, grid) - {*seeds})
    finished: Finished = {name: [] for name in grid.settings}
    for run in runs + plan(args, grid, overrides, others):
        found = read_planned(run)
        if found is None or not is_evaluated(found, tasks):
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


def _seeds(text: str) -> list[int]:
    seeds = [int(word) for word in text.split(",") if word.isdecimal()]
    if len(set(seeds)) != len(text.split(",")):
        raise UserError(f"--seeds={text} is no list of different numbers like 0,1,2")
    return seeds


def _tasks(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    tasks = tuple(task for task in text.split(",") if task)
    for task in tasks:
        if task not in known:
            raise UserError(f"there is no task '{task}'; choose of {','.join(known)}")
    return tasks


def _shard(text: str, runs: "list[Planned]") -> "list[Planned]":
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
