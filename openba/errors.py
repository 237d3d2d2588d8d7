"""The exception that a user is meant to read, and the boundary that every other exception passes.

Raise `UserError` with one line that says what is wrong, where (file, key or row) and what to do.
The command line prints that line and exits with code 2. Every other exception is a bug or a failing
service and keeps its traceback, without credentials.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from openba.redact import protect_output, redact

_LONGEST_LINE = 500
EXIT_USER_ERROR = 2
EXIT_FAILURE = 1
# Packages that talk to services: their exceptions tell of a service or its address, not of a bug here.
_SERVICE_PACKAGES = frozenset(
    [
        "mlflow",
        "prefect",
        "ray",
        "requests",
        "urllib3",
        "httpx",
        "httpcore",
        "aiohttp",
        "sqlalchemy",
        "sqlite3",
        "psycopg2",
        "asyncpg",
        "botocore",
        "boto3",
        "aiobotocore",
        "s3fs",
        "fsspec",
    ]
)


class UserError(Exception):
    """A mistake in the user's input or machine, as one line with its remedy; credentials are removed."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redact(str(message)))


def name_hint(name: str, known_names: Iterable[str]) -> str:
    """Return ` (did you mean 'NAME'?)` for the known name that is nearest to a mistyped one; else nothing."""
    close_names = difflib.get_close_matches(name, list(known_names), 1)
    return f" (did you mean {close_names[0]!r}?)" if close_names else ""


def one_line(error: BaseException) -> str:
    """Return type and text of an exception in one line of limited length, without credentials."""
    text = " ".join(redact(str(error)).split())
    name = type(error).__name__
    line = text if isinstance(error, UserError) else f"{name}: {text}" if text else name
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}…"


def is_service_failure(error: BaseException) -> bool:
    """Whether the exception comes from a service (MLflow, Prefect, Ray, a store), not of this package."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or package in _SERVICE_PACKAGES


@contextmanager
def error_boundary() -> Iterator[None]:
    """Let no exception out whose text or traceback holds credentials.

    For code that another program calls and whose exceptions it stores or shows: Prefect, Ray, MLflow.
    Such an exception is replaced by one of the same text without them. Also a decorator.
    """
    protect_output()
    try:
        yield
    except Exception as error:
        formatted = "".join(traceback.format_exception(error))
        if redact(formatted) == formatted:
            raise
        clean_error = error if isinstance(error, UserError) else RuntimeError(one_line(error))
        clean_error.__cause__ = None
        clean_error.__context__ = None
        raise clean_error.with_traceback(error.__traceback__) from None


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command line and return its exit code; the one place where its exceptions are printed.

    A user's mistake and a failing service are one line on stderr, with exit codes 2 and 1. Any other
    exception is a bug: its traceback is printed without credentials, with exit code 1.
    """
    protect_output()
    try:
        return command() or 0
    except UserError as error:
        print(f"openba: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong option or argument, reported by click
            print(f"openba: {error.format_message().rstrip('.')}{_help_hint(error)}", file=sys.stderr)
            return EXIT_USER_ERROR
        if is_service_failure(error):
            print(
                f"openba: a service failed: {one_line(error)}; check that it runs (`openba doctor`)",
                file=sys.stderr,
            )
            return EXIT_FAILURE
        print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        return EXIT_FAILURE


def _help_hint(error: Exception) -> str:
    """Return the command whose help lists what can be given, for a wrong option or argument."""
    context = getattr(error, "ctx", None)
    return f"; see `{context.command_path} --help`" if context is not None else ""
