"""The one exception for what the user can mend."""


class UserError(Exception):
    """A wrong path, option or file. Its text is one line that names the thing and says what to do.

    The scripts print it as ``error: <text>`` and end with status 2; nothing prints a traceback for it.
    """
