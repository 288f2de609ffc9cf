"""Evaluate a run from its checkpoint: `python -m eir_jax.evaluate --workdir=DIR`."""

from eir_jax.system import cli, compilation_cache, processes
from eir_jax.system.errors import UserError

DESCRIPTION = f"""\
Restore a checkpoint, embed its images once, print the numbers of the paper's section
4, and write them to DIR/eval/step_N.json with the protocol that decides each, the
pictures to DIR/figures/, and all of it to DIR/report.html, one file for any browser.
How it is done can be set here too: --config.knn.k=1,10 --config.linear.solver=lbfgs

{compilation_cache.HELP}"""


def main(argv: list[str]) -> int:
    """Parse the command line and evaluate; return the exit status."""
    from eir_jax.experiments.evaluate import (
        TASKS,
        evaluate,
        print_remarks,
        print_task,
    )

    parser = cli.Parser(prog="eir_jax.evaluate", description=DESCRIPTION)
    parser.add_argument(
        "--workdir",
        required=True,
        type=cli.path,
        help="folder of a run of eir_jax.main",
    )
    parser.add_argument(
        "--step",
        default="last",
        help="which checkpoint: its step, 'best' (by kNN while training) or 'last' "
        "(default)",
    )
    parser.add_argument(
        "--tasks",
        default="",
        help=f"any of {','.join(TASKS)} (default: all that the data allows)",
    )
    parser.add_argument(
        "--compare",
        type=cli.path,
        help="workdir of another run, to set beside this one",
    )
    parser.add_argument(
        "--data_path",
        type=cli.path,
        help="where the data lies now, if not where training read it",
    )
    parser.add_argument(
        "--out",
        type=cli.path,
        help="folder to write to instead of --workdir, of a run that is only readable",
    )
    processes.add_flags(parser)
    args, overrides = parser.parse_known_args(argv)
    processes.start(args)
    compilation_cache.keep_compiled()
    tasks = tuple(task for task in args.tasks.split(",") if task)
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"there is no task '{task}'; choose of {','.join(TASKS)}")
    record = evaluate(
        args.workdir,
        args.step,
        tasks,
        args.data_path and str(args.data_path),
        args.compare,
        overrides,
        print_task,
        args.out,
    )
    print_remarks(record)
    print(f"report: {(args.out or args.workdir) / 'report.html'}")
    return 0


if __name__ == "__main__":
    cli.run(main)
