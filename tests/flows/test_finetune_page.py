"""The blocks of docs/finetune.md that need no GPU, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTION = "## How do I try it without a GPU?"


@pytest.mark.timeout(900)
def test_the_page_is_run_block_by_block(root: Path, tmp_path: Path) -> None:
    section = (root / "docs" / "finetune.md").read_text(encoding="utf-8").partition(SECTION)[2]
    blocks = BLOCK.findall(section)
    assert [language for language, _, _ in blocks] == ["bash", "jsonl", *["yaml"] * 4, "bash", "bash"]
    commands = Path(sys.executable).parent
    environment = {
        **{
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("PREFECT_", "RAY_", "MLFLOW_", "OPENBA_"))
        },
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    for language, name, text in blocks:
        if language != "bash":
            (tmp_path / name).write_text(text, encoding="utf-8")
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert "torch.Size([1, " in done.stdout
    (adapter,) = (tmp_path / ".openba" / "store" / "title").glob("*/model/adapter_model.safetensors")
    assert adapter.stat().st_size < 1e6
    assert (tmp_path / "my-title-released" / "model.safetensors").exists()
