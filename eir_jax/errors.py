"""The one exception that a user sees as a single line."""


class UserError(Exception):
    """Bad input (config, path, picture, checkpoint): what is wrong and the way out.

    The entry points print its message as one line and exit with status 2. Every other
    exception is a bug of ours and keeps its traceback.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type; at most 200 characters."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
