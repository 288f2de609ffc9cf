"""Evaluate a run from its checkpoint: `python -m eir_jax.evaluate --workdir=DIR`."""

import argparse
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eir_jax.system import cli, compilation_cache, processes

if TYPE_CHECKING:
    from eir_jax.experiments.elsewhere import Judged

DESCRIPTION = f"""\
Restore a checkpoint, embed its images once, print the numbers of the paper's section
4, and write them to DIR/eval/step_N.json with the protocol that decides each, the
pictures to DIR/figures/, and all of it to DIR/report.html, one file for any browser.
How it is done can be set here too: --config.knn.k=1,10 --config.linear.solver=lbfgs

What else can be judged, by the same rules, which the protocol then names:

  --workdir=DIR --config=stl10_5k               a run, on another data set (transfer)
  --weights=F.safetensors --config=cifar10 --out=DIR        weights of any program
  --embeddings=TRAIN.npz,TEST.npz --out=DIR     embeddings of any program: `embedding`,
                                                `label`, `feature` (if it is another)

{compilation_cache.HELP}"""


def main(argv: list[str]) -> int:
    """Parse the command line and evaluate; return the exit status."""
    from eir_jax.experiments.evaluate import (
        check_tasks,
        evaluate,
        print_remarks,
        print_task,
    )

    parser = cli.Parser(prog="eir_jax.evaluate", description=DESCRIPTION)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "--workdir", type=cli.path, help="folder of a run of eir_jax.main"
    )
    subject.add_argument(
        "--weights", type=cli.path, help="a .safetensors or .pth instead"
    )
    subject.add_argument(
        "--embeddings",
        type=cli.paths,
        help="two .npz instead, or one that is judged within itself",
    )
    parser.add_argument(
        "--config",
        type=cli.path,
        help="another data set: that of a config, a name or a file",
    )
    parser.add_argument(
        "--out",
        type=cli.path,
        help="folder to write to (default: the workdir; for another data set "
        "DIR/transfer/CONFIG)",
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
        help="any of knn,linear,retrieval,health,figures (default: all that the data "
        "allows)",
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
    processes.add_flags(parser)
    args, overrides = parser.parse_known_args(argv)
    processes.start(args)
    compilation_cache.keep_compiled()
    tasks = check_tasks([task for task in args.tasks.split(",") if task])
    judged, out = _elsewhere(parser, args, overrides)
    record = evaluate(
        args.workdir or out,
        args.step,
        tasks,
        args.data_path and str(args.data_path),
        args.compare,
        overrides,
        print_task,
        out,
        judged,
    )
    print_remarks(record)
    print(f"report: {out / 'report.html'}")
    return 0


def _elsewhere(
    parser: cli.Parser, args: argparse.Namespace, overrides: list[str]
) -> "tuple[Judged | None, Path]":
    """Return what is judged but for a run on its own data, and where to write to."""
    if args.workdir is not None and args.config is None:
        return None, args.out or args.workdir
    if args.compare is not None or args.data_path is not None:
        parser.error(
            "--compare and --data_path go with a run on its own data; elsewhere give "
            "--config.data.path"
        )
    from eir_jax.experiments import elsewhere

    if args.workdir is not None:
        out = args.workdir / "transfer" / args.config.stem
        by = elsewhere.on_other_data(args.workdir, args.step, args.config, overrides)
        return by, args.out or out
    if args.out is None:
        parser.error("--weights and --embeddings need --out=DIR, a folder to write to")
    if args.step != "last":
        parser.error("--step goes with --workdir")
    if args.weights is not None:
        return elsewhere.by_weights(args.weights, args.config, overrides), args.out
    if args.config is not None:
        parser.error("--config goes with --workdir or --weights")
    return elsewhere.of_embeddings(args.embeddings, overrides), args.out


class _CallableModule(types.ModuleType):
    """This module as the function `eir_jax.evaluate` too, which has its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Evaluate a run: see eir_jax.api.evaluate."""
        from eir_jax import api

        return api.evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    cli.run(main)
