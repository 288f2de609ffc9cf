"""All commands under one name: `eir-jax COMMAND`, `python -m eir_jax COMMAND`."""

import difflib
import importlib
import sys

from eir_jax import __version__
from eir_jax.system import cli

COMMANDS = {
    "train": ("main", "train an encoder"),
    "evaluate": ("evaluate", "kNN, linear probe, retrieval, figures of a run"),
    "embed": ("embed", "embed pictures by a run, or by weights"),
    "search": ("search", "nearest pictures, near-duplicates"),
    "browse": ("browse", "a page to look through pictures: map, clusters, copies"),
    "export": ("export", "weights for PyTorch, ONNX, StableHLO"),
    "inspect": ("inspect", "look at a data set as training sees it"),
    "plan": ("plan", "what a run would take on GPUs or TPUs that are not here"),
    "sweep": ("sweep", "a grid of settings over seeds, with its table"),
    "results": ("results", "all runs beside the paper's numbers"),
    "coefficients": ("coefficients", "a number over a setting, drawn"),
}
"""Command: (module of eir_jax, what it does)."""


def main() -> None:
    """Run the command that the first word names; exit with its status."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print("usage: eir-jax COMMAND ...   (eir-jax COMMAND --help says more)\n")
        for command, (_, what) in COMMANDS.items():
            print(f"  {command:14}{what}")
        return
    if name == "--version":
        print(f"eir_jax {__version__}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it is {', '.join(COMMANDS)}"
        print(f"error: there is no command '{name}'; {hint}", file=sys.stderr)
        sys.exit(cli.EXIT_BAD_INPUT)
    module = importlib.import_module(f"eir_jax.{COMMANDS[name][0]}")
    sys.argv[1:] = words
    cli.Parser.called = f"eir-jax {name}"
    cli.run(module.main)


if __name__ == "__main__":
    main()
