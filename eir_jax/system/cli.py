"""What the command lines share: their paths, errors as one line, how they end."""

import argparse
import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eir_jax.system import files, interruption, processes
from eir_jax.system.errors import UserError, first_line, lacks_memory, one_line

EXIT_BAD_INPUT = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Call `main` with the command line and exit with its status (default 0).

    UserError, and what the system says of a file, become one line on stderr and status
    2; a signal one line and 128 + its number. One of several processes takes the others
    with it, however it ends.
    """
    interruption.heed()
    quiet_libraries()
    sys.unraisablehook = _unraisable
    for name in ("stdout", "stderr"):  # a shell's >&- leaves none
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    # Names of files may hold what no encoding has.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
        processes.finish()
        interruption.finished(status or 0)
    except UserError as error:
        processes.fail(str(error), EXIT_BAD_INPUT)
        sys.exit(_fail(str(error)))
    except BrokenPipeError:  # `| head` went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        processes.fail("nobody reads what is printed", 1)
        status = 1
    except BaseException as error:
        if isinstance(error, OSError) and _is_of_files(error):
            message = first_line(error)
            if error.errno in FULL:
                message += "; make room and start again: what was saved is kept"
            elif error.errno in (errno.EACCES, errno.EPERM):
                message += "; ask its owner for the right to it"
            processes.fail(message, EXIT_BAD_INPUT)
            sys.exit(_fail(message))
        if lacks_memory(error):
            message = (
                "out of memory: use a device with more, or less of what is done at "
                "once, as evaluation_batch_size and linear.batch_size "
                f"({first_line(error)})"
            )
            processes.fail(message, EXIT_BAD_INPUT)
            sys.exit(_fail(message))
        processes.fail_by(error)
        raise
    sys.exit(status or 0)


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, as every other of ours."""

    called = ""  # as what, if not as a module: `eir-jax train`

    def __init__(self, *, description: str, prog: str):
        super().__init__(
            prog=self.called or f"python -m {prog}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str):
        """Print the complaint and exit with status 2."""
        sys.exit(_fail(f"{message} (see `{self.prog} --help`)"))


def path(text: str) -> Path:
    """Read a flag that is a path: the `type` of all of them."""
    try:
        return files.local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def paths(text: str) -> list[Path]:
    """Read a flag that is one path, or several with commas between."""
    return [path(part) for part in text.split(",")]


def quiet_libraries() -> None:
    """Keep the libraries' start-up chatter out of the user's terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    quiet_orbax()
    for name in ("asyncio", "matplotlib"):  # errors are raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)


def quiet_orbax() -> None:
    """Keep Orbax's warnings of its own settings to itself; its errors are raised."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # What Orbax had still to write when it failed.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _unraisable(what: Any) -> None:
    """Pass over writes that call back after one has failed and ended the saving."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _is_of_files(error: OSError) -> bool:
    """Tell whether the system refused a file, not a network or a process."""
    return error.filename is not None or error.errno in (*FULL, errno.EROFS)


def _fail(message: str) -> int:
    with contextlib.suppress(OSError):  # a log on a full disk
        print(f"error: {one_line(message.strip())}", file=sys.stderr)
    return EXIT_BAD_INPUT
