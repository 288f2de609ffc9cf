"""What a run would take on accelerators that are not here: `python -m eir_jax.plan`."""

import json
import os
import sys

from eir_jax.system import cli

DESCRIPTION = """\
Compile the programs of a run for GPUs or TPUs that need not be there, and say what the
compiler made of them: memory a device, bytes moved, copies, collectives, and the least
time by a roofline. No data is loaded, nothing runs. Needs JAX's plug-in for the device:
pip install 'jax[cuda13]' or 'jax[tpu]'.

  --topology=h100:1  h100:2x8 (hosts x GPUs)  v5e:16x16  v6e:4x4  v5p:2x2x1  cpu:1

Settings can be given as --config.KEY=VALUE; batch_size is that of all devices together.
"""
# The plug-ins look for no device; libtpu for no machine of Google's and no lock.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def main(argv: list[str]) -> None:
    """Parse the command line, compile, and print what was found."""
    parser = cli.Parser(prog="eir_jax.plan", description=DESCRIPTION)
    parser.add_argument(
        "--config", required=True, type=cli.path, help="a file such as configs/*.py"
    )
    parser.add_argument("--topology", required=True, help="devices, as above")
    parser.add_argument(
        "--what",
        default="train",
        help="programs, a comma between them: train (the whole step; default), "
        "views and memory (parts of it), embed, nearest and merge (evaluation)",
    )
    parser.add_argument(
        "--num_examples",
        type=int,
        default=0,
        help="training images (default: data.expected of the config, without its "
        "share data.held_out)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    args, overrides = parser.parse_known_args(argv)
    os.environ.update(ENVIRONMENT)
    from eir_jax.planning.study import plan
    from eir_jax.planning.table import show
    from eir_jax.system.config import load_config

    found = plan(
        load_config(args.config, overrides),
        args.topology,
        args.what.split(","),
        args.num_examples,
        say=lambda words: print(words, file=sys.stderr),
    )
    print(json.dumps(found, indent=2) if args.json else "\n".join(show(found)))


if __name__ == "__main__":
    cli.run(main)
