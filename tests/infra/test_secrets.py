"""No secret is in a file that git keeps; infra/.env, which holds them, is not one of those."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

SUFFIXES = {".yaml", ".yml", ".json", ".env", ".example", ".toml", ".tpl", ".sql", ".txt", ".md", ""}
# A value that is neither empty nor a reference to a variable, a secret's name or a setting's own word.
ASSIGNED = re.compile(
    r"""(?ix) [\w-]*(?:password|passwd|secret|api_?key|access_?key|auth_token|ray_token)[\w-]* ["']?
    [ \t]*[:=][ \t]* ["']? (?P<value> [^\s"',}{]{8,})"""
)
NAMES = {"openba-ray", "~/.ray/auth_token"}  # where a secret is, not what it is
SHAPES = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_\w{30,}|hf_\w{30,}|://[^/\s:@$]+:[^/\s@$]+@"
)


def found_in(text: str) -> list[str]:
    assigned = [
        match["value"]
        for match in ASSIGNED.finditer(text)
        if not match["value"].startswith(("$", "(")) and match["value"] not in NAMES
    ]
    return assigned + SHAPES.findall(text)


def test_no_secret_in_what_is_kept(root: Path) -> None:
    kept = subprocess.run(
        ["git", "-C", root, "ls-files", "configs", "infra", ".ci", "prefect.yaml", "pyproject.toml"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    texts = {name: (root / name).read_text() for name in kept if Path(name).suffix in SUFFIXES}
    assert {"infra/compose.yaml", "infra/.env.example", "configs/runtime/paper.yaml"} <= texts.keys()
    assert {name: found for name, text in texts.items() if (found := found_in(text))} == {}


@pytest.mark.parametrize(
    "line",
    ["POSTGRES_PASSWORD=hunter2hunter2", 'api_key: "0123456789abcdef"', "url: redis://me:0123456789@host/0",
     "AWS_ACCESS_KEY_ID: AKIAABCDEFGHIJKLMNOP"],
)  # fmt: skip
def test_one_would_be_found(line: str) -> None:
    assert found_in(line)


def test_the_file_of_secrets_is_ignored_and_the_example_is_empty(root: Path) -> None:
    ignored = subprocess.run(["git", "-C", root, "check-ignore", "infra/.env"], capture_output=True)
    assert ignored.returncode == 0
    assignments = re.findall(r"^(\w+)=(.*)$", (root / "infra" / ".env.example").read_text(), re.MULTILINE)
    assert {name for name, value in assignments if value} == {"LISTEN"}
