"""The one exception that a user sees as a single line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

# XLA's words for what no device has room for: the status alone has other causes too,
# and on a CPU it is lost on the way.
_EXHAUSTED = re.compile(
    "RESOURCE_EXHAUSTED: .*(memory|allocat)|out of memory (allocating|while trying)",
    re.IGNORECASE | re.DOTALL,
)


class UserError(Exception):
    """Bad input (config, path, picture, checkpoint): what is wrong and the way out.

    The entry points print its message as one line and exit with status 2. Every other
    exception is a bug of ours and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type; at most 200 characters.

    Of a longer one the middle is left out: the reason stands at the end.
    """
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:90]} ... {line[-105:]}"


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device's memory, or the host's, is too small.

    XLA's is a RuntimeError, raised where an array is made or, later, looked at.
    """
    exhausted = isinstance(error, RuntimeError) and _EXHAUSTED.search(str(error))
    return isinstance(error, MemoryError) or bool(exhausted)


@contextmanager
def enough_memory(way_out: str) -> Iterator[None]:
    """Say `way_out` where memory does not suffice.

    Raises:
      UserError: for such errors; all others pass.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise UserError(f"out of memory: {way_out} ({first_line(error)})") from None


def one_line(text: str) -> str:
    """Return a text with what cannot be printed, as line ends, spelt out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
