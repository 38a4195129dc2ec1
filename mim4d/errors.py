"""The one exception type for a mistake in what the user gave."""


class UserError(Exception):
    """A wrong path, file, key or option. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
