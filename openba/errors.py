"""The one exception that a user is meant to read.

Raise it with one line that says what is wrong, where (file, key or row) and what to do.
The command line prints that line and exits with code 2; anything else is a bug and keeps
its traceback.
"""


class UserError(Exception):
    """A mistake in the user's input or machine, told in one line with its remedy."""
