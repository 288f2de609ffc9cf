"""The one exception that a user sees as a single line."""


class UserError(Exception):
    """Bad input (config, path, picture, checkpoint): what is wrong and the way out.

    The entry points print its message as one line and exit with status 2. Every other
    exception is a bug of ours and keeps its traceback.
    """
