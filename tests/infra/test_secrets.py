"""No secret is in a file that git keeps; infra/.env, which holds them, is not one of those."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.harness.programs import require_programs

SUFFIXES = {".yaml", ".yml", ".json", ".env", ".example", ".toml", ".tpl", ".sql", ".txt", ".md", ""}
# A value that is neither empty nor a reference to a variable, a secret's name or a setting's own word.
ASSIGNED = re.compile(
    r"""(?ix) [\w-]*(?:password|passwd|secret|api_?key|access_?key|auth_token|ray_token)[\w-]* ["']?
    [ \t]*[:=][ \t]* ["']? (?P<value> [^\s"',}{]{8,})"""
)
NAMES = {"openba-ray", "openba-key", "~/.ray/auth_token"}  # where a secret is, not what it is
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


@pytest.fixture(autouse=True)
def _in_a_checkout(root: Path) -> None:
    require_programs("git")
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")


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


def test_files_of_secrets_are_ignored_and_the_examples_are_empty(root: Path) -> None:
    """Each file that the docs tell people to write secrets to, whatever its name."""
    texts = [
        path.read_text() for path in (*root.glob("docs/*.md"), *root.glob("infra/**/*.*")) if path.is_file()
    ]
    named = {
        name
        for text in texts
        for name in re.findall(r"infra/\.env(?:[\w.]*\w)?|[\w./]+\.(?:pem|key|htpasswd)\b", text)
    }
    secret = sorted(name for name in named if not name.endswith(".example"))
    assert {"infra/.env", "infra/.env.kubernetes"} <= set(secret)
    for name in secret:
        if name.startswith("/"):  # in a container
            continue
        ignored = subprocess.run(["git", "-C", root, "check-ignore", "--no-index", name], capture_output=True)
        assert ignored.returncode == 0, f"git does not ignore {name}"
    for example in (root / "infra").glob(".env*.example"):
        assignments = re.findall(r"^(\w+)=(.*)$", example.read_text(), re.MULTILINE)
        assert {name for name, value in assignments if value} <= {"LISTEN"}, example
        checked = subprocess.run(
            ["git", "-C", root, "check-ignore", "--no-index", example], capture_output=True
        )
        assert checked.returncode == 1, f"git ignores {example}"
