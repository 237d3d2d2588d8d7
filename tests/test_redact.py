"""No credential is left in a text, whatever form it has, and everything else stays as it is."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.errors import UserError, error_boundary, one_line, run_command
from openba.redact import RedactingStream, has_credentials, redact, redact_values

NAMES = st.text("abcXYZ019-._~%:!$&@", min_size=1)
SECRET = "hunter2-Geheim"


@given(user=NAMES, password=NAMES, host=st.text("abc019.-", min_size=1), path=st.text("abc/@", max_size=5))
def test_nothing_of_user_and_password_is_left(user: str, password: str, host: str, path: str) -> None:
    text = f"no answer from http://{user}:{password}@{host}:5000/{path} after 2 tries"
    assert redact(text) == f"no answer from http://{host}:5000/{path} after 2 tries"
    assert redact(redact(text)) == redact(text)
    assert has_credentials(text)


@pytest.mark.parametrize(
    "text",
    [
        f"API request to http://me:{SECRET}@mlflow:5000/api failed",
        f"postgresql+psycopg2://me:{SECRET}@db/mlflow",
        f"connection to host=db user=me password={SECRET} dbname=x",
        f"connect(user='me', password='{SECRET}')",
        f'{{"user": "me", "password": "{SECRET}"}}',
        f"{{'AWS_SECRET_ACCESS_KEY': '{SECRET}'}}",
        f"https://store/model?X-Amz-Signature={SECRET}&versions=2",
        f"http://server/#/?token={SECRET}",
        f"headers: Authorization: Bearer {SECRET}",
        f"{{'authorization': 'Basic {SECRET}'}}",
        f"hf_{'a1' * 12}{'Geheim'}",
        f"sk-{'a1' * 12}{'Geheim'}",
        f"eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyIjoibWUifQ.{SECRET}",
    ],
)
def test_credentials_of_every_form_are_removed(text: str) -> None:
    assert "Geheim" not in redact(text)
    assert "Geheim" not in str(UserError(text))
    assert "Geheim" not in one_line(ValueError(text))


@pytest.mark.parametrize(
    "text",
    [
        "OPENBA_STORE=s3://bucket/a: set OPENBA_API_KEY to a secret first, such as AWS_ACCESS_KEY_ID",
        "nats_per_token=3.1, max_tokens=5, whitespace_tokens: true, seconds per token: 0.2",
        "Basic information about passwords: 12",
        "models:/openba-chat@champion on http://127.0.0.1:8000/a@b?user=me@here",
        "/data/folder@2x/store",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_environment_are_removed_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBA_API_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:with/slash%40and@at@mlflow:5000")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token-file")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "short")  # part of other words
    assert redact(f"got {SECRET}, wanted another") == "got ***, wanted another"
    assert "slash" not in redact("invalid address me:with/slash%40and@at@mlflow")
    assert "slash" not in redact("login with/slash@and@at refused")
    assert redact("shorter, see /home/me/token-file") == "shorter, see /home/me/token-file"


def test_streams_and_logs_are_redacted(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    out = RedactingStream(stream)
    print("at", f"http://me:{SECRET}@host", file=out, flush=True)
    out.writelines([f"http://me:{SECRET}@host\n"])
    assert stream.getvalue() == "at http://host\nhttp://host\n"
    code = f"""
import logging, sys, threading
from openba.redact import protect_output
protect_output(); protect_output()
logging.basicConfig()
logging.getLogger("urllib3").warning("retry %s of %s", 1, "http://me:{SECRET}@host")
try:
    raise ValueError("no answer from http://me:{SECRET}@host")
except ValueError:
    logging.getLogger("mlflow").exception("failed")
def fail(): raise ValueError("http://me:{SECRET}@host")
thread = threading.Thread(target=fail); thread.start(); thread.join()
print("http://me:{SECRET}@host", sys.stdout.isatty())
raise SystemExit("http://me:{SECRET}@host")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "retry 1 of http://host" in done.stderr
    assert done.stderr.count("Traceback") == 2  # what was raised is still told, with its place
    assert done.stdout == "http://host False\n"
    assert "Geheim" not in done.stderr
    assert logging.getLogger("mlflow")  # the names of loggers stay


def test_the_boundary_lets_no_credential_out() -> None:
    class Odd(Exception):
        """An exception whose text is not its arguments."""

        def __str__(self) -> str:
            return f"http://me:{SECRET}@host"

    @error_boundary()
    def fail(error: Exception, cause: Exception | None = None) -> None:
        raise error from cause

    with pytest.raises(RuntimeError, match="Odd: http://host") as caught:
        fail(Odd())
    assert caught.value.__cause__ is None
    with pytest.raises(UserError, match="no answer") as caught:
        fail(UserError("no answer"), Odd())
    assert caught.value.__cause__ is None
    with pytest.raises(KeyError):  # nothing to hide: type and chain stay
        fail(KeyError("x"))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError(f"http://me:{SECRET}@host: no"), 2, "openba: http://host: no\n"),
        (ConnectionError(f"http://me:{SECRET}@host\nrefused"), 1, "ConnectionError: http://host refused; "),
        (KeyError(f"http://me:{SECRET}@host"), 1, "Traceback"),
    ],
)
def test_a_command_ends_in_a_line_or_in_a_clean_traceback(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert run_command(fail) == code
    stderr = capsys.readouterr().err
    assert said in stderr
    assert "Geheim" not in stderr
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 130) == 130


def test_data_keeps_its_form() -> None:
    data = {"password": [f"s3://k:{SECRET}@bucket/x"], "n": 3, "rows": ({"a": None},)}
    assert redact_values(data) == {"password": ["s3://bucket/x"], "n": 3, "rows": [{"a": None}]}


def test_no_other_function_removes_credentials() -> None:
    """One function for all: whoever needs it calls `redact`."""
    root = Path(__file__).resolve().parents[1]
    for folder in ("openba", "tasks", "flows"):
        for path in (root / folder).rglob("*.py"):
            if path.name != "redact.py":
                assert "without_credentials" not in path.read_text(encoding="utf-8"), path
