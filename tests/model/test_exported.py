"""An exported folder in a process that cannot import this package: `trust_remote_code` is all it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openba import OpenBAConfig, OpenBAForConditionalGeneration
from openba.model.files import save_model
from openba.model.generate import generate
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

PROMPTS = ["房间很干净，服务也好。", "def f(x):", "the file was not found"]
NEW = 8
# Stands between the two: nothing of openba may be imported, whatever the environment's paths hold.
CLEAN = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "openba":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder, out, prompts, new = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert not any(name.split(".")[0] == "openba" for name in sys.modules)
batch = tokenizer(prompts, prompt=True, padding=True, return_tensors="pt")
start = torch.tensor([[model.generation_config.decoder_start_token_id, 5, 6]] * len(prompts))
with torch.no_grad():
    logits = model(**batch, decoder_input_ids=start).logits
answers = model.generate(**batch, do_sample=False, max_new_tokens=new)
model.save_pretrained(out + "/again")
tokenizer.save_pretrained(out + "/again")
save_file({"logits": logits, "answers": answers, **batch}, out + "/results.safetensors")
texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
print(json.dumps({"class": type(model).__name__, "texts": texts}))
"""


@pytest.fixture(scope="module")
def exported(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's form, as a training stage leaves it."""
    recipe = ModelRecipe(
        d_model=32, num_heads=3, kv_channels=8, ffn=64, ffn_multiple=16, encoder_layers=1, decoder_layers=3,
        positions=64, init_std=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = OpenBAModel(recipe.architecture(tokenizer.size))
    folder = tmp_path_factory.mktemp("exported")
    save_model(folder, model.state_dict(), model.architecture, tokenizer)
    return folder


@pytest.fixture(scope="module")
def clean(
    exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """The clean process's folder, its words and its tensors."""
    out = tmp_path_factory.mktemp("clean")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(out / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN, exported, out, json.dumps(PROMPTS), str(NEW)],
        env=environment,
        cwd=out,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out, json.loads(done.stdout.splitlines()[-1]), load_file(out / "results.safetensors")


def test_logits_and_answers_are_bitwise_equal(
    exported: Path, clean: tuple[Path, dict[str, Any], dict[str, Tensor]]
) -> None:
    _, words, tensors = clean
    assert words["class"] == "OpenBAForConditionalGeneration"
    model = OpenBAForConditionalGeneration.from_pretrained(exported)
    batch = {name: tensors[name] for name in ("input_ids", "attention_mask")}
    start = torch.tensor([[0, 5, 6]] * len(PROMPTS))
    with torch.no_grad():
        assert torch.equal(model(**batch, decoder_input_ids=start).logits, tensors["logits"])
    assert torch.equal(model.generate(**batch, do_sample=False, max_new_tokens=NEW), tensors["answers"])


def test_its_answers_are_ours(
    exported: Path, clean: tuple[Path, dict[str, Any], dict[str, Tensor]], tokenizer: Tokenizer
) -> None:
    _, words, tensors = clean
    model, ours = load_model(exported)
    sources = [
        row[real.bool()].tolist()
        for row, real in zip(tensors["input_ids"], tensors["attention_mask"], strict=True)
    ]
    for source, prompt in zip(sources, PROMPTS, strict=True):
        assert source == [
            tokenizer.mode("S"), *tokenizer.encode(prompt), tokenizer.sentinel(0), tokenizer.eos
        ]  # fmt: skip
    # An answer starts from pad and <extra_id_0>; the second is one of generate's new tokens.
    assert tensors["answers"][:, :2].tolist() == [[0, tokenizer.sentinel(0)]] * len(PROMPTS)
    answers = generate(model, ours, sources, NEW - 1)
    used = [row[row < tokenizer.size].tolist() for row in tensors["answers"]]
    assert answers == [tokenizer.decode(ids) for ids in used]
    assert words["texts"] == answers
    assert len(set(answers)) == len(answers)


def test_what_the_clean_process_saves_is_whole(
    exported: Path, clean: tuple[Path, dict[str, Any], dict[str, Tensor]]
) -> None:
    again = clean[0] / "again"
    there = {path.name for path in again.iterdir()}
    carried = {path.name for path in exported.iterdir()} - {"README.md"}  # the card speaks of one folder
    assert carried <= there
    assert json.loads((again / "config.json").read_text())["auto_map"].keys() == {
        "AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM",
    }  # fmt: skip
    first, second = (json.loads((f / "generation_config.json").read_text()) for f in (exported, again))
    assert first.items() <= second.items()
    model, _ = load_model(again)
    expected, _ = load_model(exported)
    assert model.architecture == expected.architecture
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_config_says_all_that_an_architecture_does(exported: Path) -> None:
    config = OpenBAConfig.from_pretrained(exported)
    assert config.architecture() == load_model(exported)[0].architecture
    assert config.decoder_start_token_id == config.pad_token_id == 0
