"""A server whose engine cannot go on ends its process, so that a supervisor starts another."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tasks.serve import EXIT_ENGINE_FAILED
from tests.serve.conftest import KEY

# The command itself, with a decoder step that fails or hangs after some calls, as on a broken device.
_COMMAND = """
import sys, time
from openba.model.cpu.cpu_step import CompiledStep
real, calls = CompiledStep.__call__, 0
def step(self, *arguments):
    global calls
    calls += 1
    if calls > 6:
        {fault}
    return real(self, *arguments)
CompiledStep.__call__ = step
from flows.cli import main
main()
"""
FAULTS = {
    "ends": "raise RuntimeError('device-side assert triggered at http://me:hunter2-Geheim@host')",
    "hangs": "time.sleep(1000)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_process_ends_with_its_engine(
    fault: str, model_folder: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", _COMMAND.format(fault=FAULTS[fault])]
    options = ["serve", str(model_folder), "--port", "0", "--threads", "1", "--answer", "3"]
    process = subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        client = httpx.Client(base_url=found[0], headers={"authorization": f"Bearer {KEY}"}, timeout=30)
        began = time.monotonic()
        with client:
            answer = client.post("/v1/completions", json={"prompt": "房间 1", "max_tokens": 100})
        assert answer.status_code in (500, 503)
        assert answer.json()["error"]["code"] in ("engine_error", "timeout")
        assert "device-side" not in answer.text  # that is for the log
        assert process.wait(30) == EXIT_ENGINE_FAILED
        assert time.monotonic() - began < 25
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        assert len(lines) <= 3
        assert all(line.startswith("openba: ") for line in lines)
        assert "the server stops" in lines[-1]
        assert ("dead" if fault == "ends" else "stalled") in lines[-1]
        assert "Geheim" not in "".join(lines)
    finally:
        process.kill()
        process.wait()
