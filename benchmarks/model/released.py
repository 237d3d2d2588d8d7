"""Model against the released implementation: outputs, gradients, parameter count, exported folders.

The fixture (`../shared/fixtures/released_model_tiny.*`) holds a tiny random model in the released layout and
what the released code computes with it. Without it these figures are left out with a message.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.figure import ROOT, Figure
from benchmarks.model.tokenizer import MODEL_FILES
from openba import OpenBAForConditionalGeneration
from openba.accounting.count import count_parameters
from openba.config import find_config, load
from openba.model.files import save_model, write_weights
from openba.model.model import OpenBAModel
from openba.plan import MT5_IDS
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

FIXTURE = ROOT.parent / "shared" / "fixtures" / "released_model_tiny"
RELEASED_PARAMETERS = 14_567_703_040
# fp32 on another processor than the fixture's: sums differ in the last bits.
LOGIT_TOLERANCE = 1e-4


def figures() -> Iterator[Figure]:
    """Yield differences from the release, all of which should be next to nothing."""
    released_recipe = load(find_config("model", "openba-15b-released"), ModelRecipe)
    difference = abs(count_parameters(released_recipe, MT5_IDS)["total"] - RELEASED_PARAMETERS)
    peer = f"release: {RELEASED_PARAMETERS}"
    yield Figure("model/released_15b_parameters_off", difference, "", 0, peer=peer)
    if FIXTURE.with_suffix(".json").exists():
        yield from _fixture_figures()
    else:
        print(
            "benchmarks: model: no ../shared fixture of the released model; its figures are left out",
            file=sys.stderr,
        )
    yield from _clean_process_figures()


def _fixture_figures() -> Iterator[Figure]:
    tensors = load_file(FIXTURE.with_suffix(".safetensors"))
    facts = json.loads(FIXTURE.with_suffix(".json").read_text())
    model = _load_released(tensors, facts["config"])
    source = {name: tensors[name] for name in ("input_ids", "attention_mask")}
    decoder_ids = tensors["decoder_input_ids"]
    with torch.no_grad():
        logits = model(**source, decoder_input_ids=decoder_ids).logits
        cached_logits = _decode_with_cache(model, source, decoder_ids)
    difference = _largest_difference(logits, tensors["logits"])
    yield Figure("model/released_logits_difference", difference, "", LOGIT_TOLERANCE)
    difference = _largest_difference(cached_logits, tensors["cached_step_logits"])
    yield Figure("model/released_cached_difference", difference, "", LOGIT_TOLERANCE)
    for name, arguments in (
        ("greedy", {"eos_token_id": None}),
        ("eos", {}),
        ("beam3", {"num_beams": 3}),
    ):
        expected_ids = tensors[f"generated_{name}"]
        max_new_tokens = expected_ids.shape[1] - 1  # the first is the decoder's start
        output_ids = model.generate(**source, max_new_tokens=max_new_tokens, do_sample=False, **arguments)
        is_equal = torch.equal(output_ids, expected_ids.long())
        yield Figure(f"model/released_{name}_tokens_equal", float(is_equal), "", 1, "higher")
    norm_error = _gradient_norm_error(model, source, tensors["labels"], facts["grad_norms"])
    yield Figure("model/released_gradient_norm_off", norm_error, "relative", 1e-3)


def _load_released(
    tensors: Mapping[str, Tensor], config: Mapping[str, object]
) -> OpenBAForConditionalGeneration:
    prefix = "state_dict/"
    weights = {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), weights, "10GB")
        config_text = json.dumps({**config, "model_type": "openba"})
        (Path(folder) / "config.json").write_text(config_text, encoding="utf-8")
        return OpenBAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def _decode_with_cache(
    model: OpenBAForConditionalGeneration, source: dict[str, Tensor], decoder_ids: Tensor
) -> Tensor:
    """Return logits `[batch, positions, vocab]` computed token by token with the cache."""
    past_key_values = None
    step_logits = []
    for position in range(decoder_ids.shape[1]):
        output = model(
            **source,
            decoder_input_ids=decoder_ids[:, position : position + 1],
            past_key_values=past_key_values,
            use_cache=True,
        )
        past_key_values = output.past_key_values
        step_logits.append(output.logits)
    return torch.cat(step_logits, 1)


def _gradient_norm_error(
    model: OpenBAForConditionalGeneration,
    source: dict[str, Tensor],
    labels: Tensor,
    expected_norms: Mapping[str, float],
) -> float:
    """Return the largest relative difference of a gradient's norm."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.eval()
    model.zero_grad()
    model(**source, labels=labels).loss.backward()
    norms = {name: float(parameter.grad.norm()) for name, parameter in model.named_parameters()}
    assert norms.keys() == expected_norms.keys()
    return max(abs(norms[name] - norm) / norm for name, norm in expected_norms.items())


def _largest_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


CLEAN_PROCESS = """
import sys
sys.modules["openba"] = None  # an import of it would raise
import torch
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids = torch.arange(3, 43).view(2, 20)
with torch.no_grad():
    torch.save(model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits, sys.argv[2])
"""


def _clean_process_figures() -> Iterator[Figure]:
    """Compare an exported folder in a process that cannot import openba with the same model here."""
    tokenizer_file = next((path for path in MODEL_FILES if path.is_file()), None)
    if tokenizer_file is None:
        print(
            "benchmarks: model: no mT5 file for an exported folder; its figure is left out", file=sys.stderr
        )
        return
    tokenizer = Tokenizer(tokenizer_file)
    torch.manual_seed(0)
    tiny_recipe = load(find_config("model", "tiny"), ModelRecipe)
    model = OpenBAModel(tiny_recipe.architecture(tokenizer.size))
    with tempfile.TemporaryDirectory() as folder:
        exported_folder = f"{folder}/model"
        logits_file = f"{folder}/logits.pt"
        save_model(Path(exported_folder), model.state_dict(), model.architecture, tokenizer)
        environment = {**os.environ, "HF_MODULES_CACHE": f"{folder}/modules"}
        command = [sys.executable, "-I", "-c", CLEAN_PROCESS, exported_folder, logits_file]
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
        clean_logits = torch.load(logits_file, weights_only=True)
        local_model = OpenBAForConditionalGeneration.from_pretrained(exported_folder).eval()
    ids = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        logits = local_model(input_ids=ids, decoder_input_ids=ids.flip(1)).logits
    difference = _largest_difference(logits, clean_logits)
    yield Figure("model/exported_clean_process_difference", difference, "", 0)
