"""Train an encoder: `python -m eir_jax.main --config=FILE --workdir=DIR`."""

import time

from eir_jax.system import cli, compilation_cache, processes

DESCRIPTION = f"""\
Learn an embedding of images without labels (EIR). Started again on the same workdir,
it goes on from the newest whole checkpoint.

Any setting of configs/base.py can be given as --config.KEY=VALUE, e.g.
  --config.seed=1 --config.lambda_intra=0 --config.knn.k=5,20
  --config.data.source=arrays --config.data.path=cifar10.npz

{compilation_cache.HELP}"""


def main(argv: list[str]) -> int:
    """Parse the command line and train; return the exit status."""
    began = time.monotonic()
    parser = cli.Parser(prog="eir_jax.main", description=DESCRIPTION)
    parser.add_argument(
        "--config", required=True, type=cli.path, help="a name (digits) or a file"
    )
    parser.add_argument(
        "--workdir", required=True, type=cli.path, help="folder for all the run writes"
    )
    processes.add_flags(parser)
    args, overrides = parser.parse_known_args(argv)
    processes.start(args, stops_after_a_step=True)
    compilation_cache.keep_compiled()
    from eir_jax.system.config import load_config

    config = load_config(args.config, overrides)
    from eir_jax.run.optimizer import schedule_note
    from eir_jax.run.validate import validate
    from eir_jax.system.startup import Startup
    from eir_jax.training.loop import train_and_evaluate

    validate(config)
    if note := schedule_note(config, planned=load_config(args.config).num_epochs):
        print(note)
    return train_and_evaluate(config, args.workdir, Startup(began))


if __name__ == "__main__":
    cli.run(main)
