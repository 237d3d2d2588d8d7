"""The model against the released implementation: outputs, gradients, parameter count, exported folders.

The fixture (`../shared/fixtures/released_model_tiny.*`) holds a tiny random model in the released layout and
what the released code computes with it. Without it these figures are left out, and that is said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.figure import ROOT, Figure
from benchmarks.model.tokenizer import MODELS
from openba import OpenBAForConditionalGeneration
from openba.accounting.count import count_parameters
from openba.config import load
from openba.graph import find_config
from openba.model.files import save_model, write_weights
from openba.model.model import OpenBAModel
from openba.plan import MT5_IDS
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

FIXTURE = ROOT.parent / "shared" / "fixtures" / "released_model_tiny"
RELEASED_PARAMETERS = 14_567_703_040


def figures() -> Iterator[Figure]:
    """Differences from the release; all of them should be next to nothing."""
    released = load(find_config("model", "openba-15b-released"), ModelRecipe)
    off = abs(count_parameters(released, MT5_IDS)["total"] - RELEASED_PARAMETERS)
    yield Figure("model/released_15b_parameters_off", off, "", 0, peer=f"release: {RELEASED_PARAMETERS}")
    if FIXTURE.with_suffix(".json").exists():
        yield from _fixture()
    else:
        print(
            "benchmarks: model: no ../shared fixture of the released model; its figures are left out",
            file=sys.stderr,
        )
    yield from _clean_process()


def _fixture() -> Iterator[Figure]:
    known, facts = (
        load_file(FIXTURE.with_suffix(".safetensors")),
        json.loads(FIXTURE.with_suffix(".json").read_text()),
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = {k.removeprefix("state_dict/"): v for k, v in known.items() if k.startswith("state_dict/")}
        write_weights(Path(folder), weights, "10GB")
        config = facts["config"] | {"model_type": "openba"}
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        model = OpenBAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    source = {name: known[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**source, decoder_input_ids=known["decoder_input_ids"]).logits
        cached = _step_by_step(model, source, known["decoder_input_ids"])
    yield Figure("model/released_logits_difference", _furthest(logits, known["logits"]), "", 1e-4)
    yield Figure("model/released_cached_difference", _furthest(cached, known["cached_step_logits"]), "", 1e-4)
    for name, arguments in (
        ("greedy", {"eos_token_id": None}),
        ("eos", {}),
        ("beam3", {"num_beams": 3}),
    ):
        wanted: Tensor = known[f"generated_{name}"]
        length = wanted.shape[1] - 1
        written = model.generate(**source, max_new_tokens=length, do_sample=False, **arguments)
        same = written.shape == wanted.shape and int((written != wanted).sum()) == 0
        yield Figure(f"model/released_{name}_tokens_equal", float(same), "", 1, "higher")
    yield Figure(
        "model/released_gradient_norm_off", _gradients_off(model, source, known, facts), "relative", 1e-3
    )


def _step_by_step(model: Any, source: dict[str, Tensor], ids: Tensor) -> Tensor:
    past, steps = None, []
    for column in range(ids.shape[1]):
        one = ids[:, column : column + 1]
        output = model(**source, decoder_input_ids=one, past_key_values=past, use_cache=True)
        past = output.past_key_values
        steps.append(output.logits)
    return torch.cat(steps, 1)


def _gradients_off(
    model: Any, source: dict[str, Tensor], known: dict[str, Tensor], facts: dict[str, Any]
) -> float:
    """Largest relative difference of a gradient's norm."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.eval()
    model.zero_grad()
    model(**source, labels=known["labels"]).loss.backward()
    norms = {name: float(parameter.grad.norm()) for name, parameter in model.named_parameters()}
    assert norms.keys() == facts["grad_norms"].keys()
    return max(abs(norms[name] - norm) / norm for name, norm in facts["grad_norms"].items())


def _furthest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


CLEAN = """
import sys
sys.modules["openba"] = None  # an import of it would raise
import torch
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids = torch.arange(3, 43).view(2, 20)
with torch.no_grad():
    torch.save(model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits, sys.argv[2])
"""


def _clean_process() -> Iterator[Figure]:
    """An exported folder in a process that cannot import openba, against the same model here."""
    path = next((path for path in MODELS if path.is_file()), None)
    if path is None:
        print(
            "benchmarks: model: no mT5 file for an exported folder; its figure is left out", file=sys.stderr
        )
        return
    tokenizer = Tokenizer(path)
    torch.manual_seed(0)
    tiny = load(find_config("model", "tiny"), ModelRecipe)
    model = OpenBAModel(tiny.architecture(tokenizer.size))
    with tempfile.TemporaryDirectory() as folder:
        exported, written = f"{folder}/model", f"{folder}/logits.pt"
        save_model(Path(exported), model.state_dict(), model.architecture, tokenizer)
        environment = {**os.environ, "HF_MODULES_CACHE": f"{folder}/modules"}
        command = [sys.executable, "-I", "-c", CLEAN, exported, written]
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
        there = torch.load(written, weights_only=True)
        here = OpenBAForConditionalGeneration.from_pretrained(exported).eval()
    ids = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        logits = here(input_ids=ids, decoder_input_ids=ids.flip(1)).logits
    yield Figure("model/exported_clean_process_difference", _furthest(logits, there), "", 0)
