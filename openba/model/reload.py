"""Comparison of an exported model in transformers with the same weights in openba.

Owns the comparison: the same weights in this process by `loading.load_model`, in a clean one by transformers
and the code that the folder carries (`reload_child.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from openba.errors import UserError
from openba.model import reload_child
from openba.model.adapter_base import is_adapter
from openba.model.export import export
from openba.model.loading import load_model
from openba.model.rows import Rows

_SOURCE = 12
_TARGET = 6
"""Tokens of the one row that is compared, spread over the whole vocabulary."""


def logits_apart(folder: Path, seconds: float = 1800.0) -> float:
    """Return the largest absolute difference of logits between both ways to load `folder`; 0 where equal.

    An adapter is compared as what it is exported as: merged.

    Raises:
        UserError: transformers could not load it; the message is its last line.
    """
    if is_adapter(folder):
        with tempfile.TemporaryDirectory(prefix="openba-merged-") as scratch_folder:
            whole_model = Path(scratch_folder) / "model"
            export(folder, whole_model, "safetensors")
            return logits_apart(whole_model, seconds)
    model, tokenizer = load_model(folder)
    places = torch.linspace(0, tokenizer.size - 1, _SOURCE + _TARGET).long()
    ids = {"encoder": places[None, :_SOURCE].contiguous(), "decoder": places[None, _SOURCE:].contiguous()}
    source, target = (Rows.ragged(torch.ones_like(ids[side]).bool()) for side in ("encoder", "decoder"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the clean process: sums in another order differ in the last bit
    with torch.no_grad():
        hidden = model.hidden(ids["encoder"], source, ids["decoder"], target)
        ours = torch.nn.functional.linear(hidden, model.head_weight, model.lm_head.bias)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="openba-reload-") as exchange:
        save_file(ids, f"{exchange}/ids.safetensors")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_MODULES_CACHE": f"{exchange}/modules", "HF_HUB_OFFLINE": "1"}
        # -I: neither the environment's paths nor the working directory can bring openba in.
        command = [sys.executable, "-I", reload_child.__file__, str(folder), exchange]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no output"]
            raise UserError(f"{folder}: transformers does not load it: {lines[-1]}")
        theirs = load_file(f"{exchange}/logits.safetensors")["logits"][0]
    return float((ours.float() - theirs.float()).abs().max())
