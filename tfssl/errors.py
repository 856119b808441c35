"""The one exception that users are meant to read."""


class UserError(ValueError):
    """Something the user can mend: one line that names the cause and the remedy.

    The binaries print the line and exit with status 1, without a traceback; in a notebook it is a ValueError.
    """
