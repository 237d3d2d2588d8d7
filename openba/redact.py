"""Removal of credentials from text, and its installation at a process's outputs.

`redact` is the only function of the package that removes credentials. `UserError` applies it to every
message, `protect_output` to all that a process prints or logs. What is written elsewhere (MLflow, `/health`,
`/metrics`, the report) is passed through it where it is written.

No library does this for arbitrary text: `detect-secrets` scans files and reports line numbers, SQLAlchemy and
httpx mask the password of a parsed address only.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import unquote

MASK = "***"
# Up to the last @ before the path: a password may hold an @ itself.
_USER_INFORMATION = re.compile(r"(?<=://)[^/?#\s\"'<>]*@")
_NAMES_OF_SECRETS = (
    r"pass(?:word|wd|phrase)|secret|(?:api|access|secret|private|account)[_-]?key|"
    r"(?:auth|access|refresh|session|security|bearer)[_-]?token|credential"
)
# Group 1 stays, what follows it is masked.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # ?token=x&sig=y in an address.
        r"([?&;][\w.-]*(?:pass|pwd|secret|token|key|sig|credential|auth)[\w.-]*=)[^\s&;\"'<>]+",
        # password=x of a DSN or a Python call.
        rf"((?:{_NAMES_OF_SECRETS})[\w.-]*=[\"']?)[^\s&;,\"'<>()]+",
        # "password": "x" of JSON or of a printed dict.
        rf"([\"'][\w.-]*(?:{_NAMES_OF_SECRETS})[\w.-]*[\"']\s*:\s*[\"'])[^\"']+",
        r"(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer |basic )?)[^\s,\"']+",
        r"(\bbearer )[\w.~+/=-]{16,}",
        # Tokens by prefix: OpenAI, Hugging Face, GitHub, GitLab, Slack, AWS, Google, JSON web tokens.
        r"()\b(?:sk-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
        r"()\b(?:glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,})",
        r"()\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}",
    )
)
_SECRET_VARIABLE = re.compile(
    r"(?i)(?:^|_)(?:\w*KEY|KEY_ID|TOKEN|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|DSN|AUTH|"
    r"AUTH_STRING)$"
)
# Scheme, user, password; not host, port and a path with an @ in it.
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://([^:/\s]*):(?!\d*/)(\S*)@\S*")
_SHORTEST_VALUE = 6
_SHORTEST_PASSWORD = 4
"""Characters. Shorter values of secret variables, and shorter passwords, are part of too many words."""


def redact(text: str) -> str:
    """Return the text without credentials; doing it twice changes nothing more.

    User and password of every address are removed. Masked are secret parameters of addresses, passwords of
    DSNs, authorization headers, tokens of well-known form, values of this process's secret environment
    variables, and passwords of addresses that any of its variables holds.
    """
    text = _USER_INFORMATION.sub("", text)
    for secret in _environment_secrets():
        if secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return text


def redact_values(value: Any) -> Any:
    """Return JSON-like data with every string in it redacted; keys stay."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(each) for each in value]
    return value


def has_credentials(address: str) -> bool:
    """Whether an address holds a user or a password."""
    return _USER_INFORMATION.search(address) is not None


def holds_secret(name: str, value: str) -> bool:
    """Whether an environment variable of this name and value is a secret, or its value has one in it."""
    return bool(_secrets_of(name, value)) or redact(value) != value


def protect_output() -> None:
    """Redact all that this process prints and logs from now on; a second call changes nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactingStream):
            setattr(sys, name, RedactingStream(stream))
    if not isinstance(logging.getLogRecordFactory(), _RedactingRecordFactory):
        logging.setLogRecordFactory(_RedactingRecordFactory(logging.getLogRecordFactory()))


class RedactingStream:
    """A text stream that redacts what is written to it; all else is the underlying stream's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the redacted text; returns the length of what was given, as callers compare it."""
        # Each piece by itself: print passes whole strings, so no secret is cut in two.
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each redacted."""
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _RedactingRecordFactory:
    """Makes log records whose message and traceback are redacted, whichever handler formats them."""

    def __init__(self, make_record: Any) -> None:
        self._make_record = make_record

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make_record(*args, **kwargs)
        try:
            message = record.getMessage()
        except Exception:  # wrong arguments are the handler's to report
            return record
        if (clean := redact(message)) != message:
            record.msg = clean
            record.args = None
        if record.exc_info and record.exc_info[0] is not None:
            formatted = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (clean := redact(formatted)) != formatted:
                record.exc_info = None
                record.exc_text = clean
        return record


def _environment_secrets() -> list[str]:
    """Secret values of the environment, the longest first: one may be part of another."""
    secrets = {secret for name, value in os.environ.items() for secret in _secrets_of(name, value)}
    return sorted(secrets, key=len, reverse=True)


@lru_cache(maxsize=1024)
def _secrets_of(name: str, value: str) -> frozenset[str]:
    """Secrets in one environment variable: the password of an address, or the value of a secret variable.

    The password may hold any character, also / and @; it counts as written, decoded, and as HTTP encodes it.
    """
    if (address := _ADDRESS.fullmatch(value)) is not None:
        user, password = address.groups()
        login = base64.b64encode(unquote(f"{user}:{password}").encode()).decode()  # as HTTP sends both
        secrets = password, unquote(password), login
        return frozenset(each for each in secrets if len(each) >= _SHORTEST_PASSWORD)
    is_secret = _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_VALUE and not value.startswith("/")
    return frozenset({value} if is_secret else ())
