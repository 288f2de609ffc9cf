"""Flags that the commands of a collection share."""

import os
from argparse import ArgumentParser, _ArgumentGroup
from pathlib import Path

from eir_jax.system import cli
from eir_jax.system.errors import UserError
from eir_jax.system.files import in_words


def add_embeddings(parser: ArgumentParser, what: str) -> None:
    """Add --embeddings, and --images: where their pictures lie now."""
    parser.add_argument(
        "--embeddings",
        required=True,
        type=cli.path,
        metavar="E.npz",
        help=f"what eir_jax.embed wrote, to {what}",
    )
    parser.add_argument(
        "--images",
        type=cli.path,
        metavar="DIR",
        help="where the embedded pictures lie now, if not where they were embedded",
    )


def check_images(images: Path | None) -> None:
    """Check that what --images names is there.

    Raises:
      UserError: it is not.
    """
    if images is not None and not os.path.exists(images):
        raise UserError(f"there is no folder or file {in_words(images)} (--images)")


def add_run(
    parser: ArgumentParser,
    group: _ArgumentGroup | None = None,
    *,
    step: str | None = None,
    otherwise: str = "",
) -> None:
    """Add --workdir and --step, which checkpoint of it.

    Args:
      parser: of the command.
      group: that --workdir belongs to, of which one is to be given.
      step: its default.
      otherwise: what is taken where they are left out, in words.
    """
    (group or parser).add_argument(
        "--workdir",
        type=cli.path,
        metavar="DIR",
        help="folder of a run of eir_jax.main, which embeds" + otherwise,
    )
    parser.add_argument(
        "--step",
        default=step,
        help="its checkpoint: a step, 'best' or 'last'"
        + (otherwise or f" (default {step})"),
    )
