"""Weights that exist as the start of a training: what names them, what identifies them, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openba.artifacts import Build, Store, materialize
from openba.config import CONFIGS
from openba.errors import UserError
from openba.graph import WEIGHTS, Pipeline
from openba.model import adopt
from openba.model.files import WEIGHTS as WEIGHTS_FILE
from openba.model.files import load_architecture, load_weights
from openba.model.loading import load_model
from openba.model.origin import resolve
from openba.recipes.model import ModelRecipe
from openba.recipes.start import WeightsRecipe, WeightsStep
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.start import start_weights
from tests.harness.released import MODEL, architecture, to_bin_shards, write_folder

COMMIT = "0" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENBA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def released(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return write_folder(tmp_path / "released", tokenizer)


def adopted(folder: Path, out: Path, **recipe: str) -> Path:
    out.mkdir()
    step = resolve(WeightsRecipe(weights=str(folder), **recipe))
    adopt.build(Build(out, step, {}))
    return out / "model"


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_released_weights_are_taken_as_they_are(released: Path, tmp_path: Path, form: str) -> None:
    weights = load_weights(released)
    if form == "bin":
        to_bin_shards(released, weights)
    folder = adopted(released, tmp_path / "out")
    model, _ = load_model(folder)
    found = model.state_dict()
    assert found.keys() == weights.keys()
    assert all(t.dtype == torch.float16 and torch.equal(t, weights[name]) for name, t in found.items())
    facts = json.loads(json.dumps(adopt.build(Build(_empty(tmp_path / "b"), resolve(_named(released)), {}))))
    assert facts["dtype"] == "float16"
    assert facts["parameters"] == sum(tensor.numel() for tensor in weights.values())


def _named(folder: Path) -> WeightsRecipe:
    return WeightsRecipe(weights=str(folder))


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_of_two_forms_of_the_weights_safetensors_are_taken(released: Path, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, released / "pytorch_model.bin")
    names = {path.name for path in adopted(released, tmp_path / "out").iterdir()}
    assert "pytorch_model.bin" not in names
    assert WEIGHTS_FILE in names


def test_a_copy_has_the_same_digests_and_changed_weights_have_others(released: Path, tmp_path: Path) -> None:
    before = resolve(_named(released)).files
    assert set(before) == {"config.json", WEIGHTS_FILE, "spiece.model"}
    shutil.copytree(released, tmp_path / "copy")
    assert resolve(_named(tmp_path / "copy")).files == before
    times = os.stat(released / WEIGHTS_FILE)
    weights = load_weights(released)
    weights["encoder.final_layernorm.bias"] = weights["encoder.final_layernorm.bias"] + 1
    save_file(weights, released / WEIGHTS_FILE)
    # Of the same size and set to the old time: only the content tells.
    os.utime(released / WEIGHTS_FILE, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = resolve(_named(released)).files
    assert {name for name in after if after[name] != before[name]} == {WEIGHTS_FILE}


def test_an_output_of_another_store_is_a_start(released: Path, tmp_path: Path) -> None:
    from openba.artifacts import Step

    store = Store(tmp_path / "store", tmp_path / "work")
    step = Step("weights-a", WEIGHTS, resolve(_named(released)))
    materialize(step, store)
    again = resolve(WeightsRecipe(weights=f"file://{store.path(step)}"))
    assert set(again.files) == {f"model/{name}" for name in resolve(_named(released)).files}
    adopt.build(Build(_empty(tmp_path / "out"), again, {}))
    found, wanted = (
        load_model(folder / "model")[0].state_dict() for folder in (tmp_path / "out", store.path(step))
    )
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_weights_without_tokenizer_take_the_file_that_is_named(
    released: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (released / "spiece.model").rename(tmp_path / "mt5.model")
    with pytest.raises(UserError, match=r"no spiece\.model beside the weights") as error:
        resolve(_named(released))
    one_line(error)
    folder = adopted(released, tmp_path / "out", tokenizer=str(tmp_path / "mt5.model"))
    assert Tokenizer.load(folder).size == tokenizer.size


def _truncate(folder: Path) -> None:
    path = folder / "pytorch_model-00002-of-00003.bin"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _lose_a_shard(folder: Path) -> None:
    (folder / "pytorch_model-00003-of-00003.bin").unlink()


def _reserve_only(folder: Path) -> None:
    weights = load_weights(folder)
    weights["decoder.block.1.mlp.fc_out.weight"] = torch.zeros_like(
        weights["decoder.block.1.mlp.fc_out.weight"]
    )
    to_bin_shards(folder, weights)


def _quantise(folder: Path) -> None:
    weights = load_weights(folder)
    to_bin_shards(folder, {name: tensor.to(torch.int8) for name, tensor in weights.items()})


def _other_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 2}))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, "00002-of-00003.bin: not readable"),
        (_lose_a_shard, "00003-of-00003.bin: not readable"),
        (_reserve_only, "tensor decoder.block.1.mlp.fc_out.weight ends in zeros only"),
        (_quantise, "is int8; quantised weights are not read"),
        (_other_config, "tensor encoder.block.1.input_layernorm.weight is missing"),
        (_no_config, "no config.json in it"),
    ],
)
def test_unusable_weights_are_one_line(
    released: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    to_bin_shards(released, load_weights(released))
    spoil(released)
    with pytest.raises(UserError, match=message) as error:
        adopted(released, tmp_path / "out")
    one_line(error)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"weights": "no/such"}, "needs its commit as `revision`"),
        ({"weights": "no/such", "revision": "main"}, "is no commit of no/such"),
        ({"weights": "models:/openba-flan@champion"}, "no registry is asked here"),
        ({"weights": "/no/such/folder", "revision": COMMIT}, "no such folder"),
    ],
)
def test_what_names_no_weights_is_one_line(recipe: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        resolve(WeightsRecipe(**recipe))
    one_line(error)


def test_a_registered_model_is_found_by_its_digests(released: Path) -> None:
    asked = []

    def registered(address: str) -> tuple[str, dict[str, dict[str, str]]]:
        asked.append(address)
        files = ("model/config.json", "model/spiece.model", "model/model.safetensors", "metrics.jsonl")
        return "file:///store/x", {name: {"sha256": "1"} for name in files}

    step = resolve(WeightsRecipe(weights="models:/openba-flan@champion"), registered)
    assert asked == ["models:/openba-flan@champion"]
    assert step.location == "file:///store/x"
    assert sorted(step.files) == ["model/config.json", "model/model.safetensors", "model/spiece.model"]


def test_a_model_of_the_hub_without_network_is_one_line(tmp_path: Path) -> None:
    step = resolve(WeightsRecipe(weights="owner/name", revision=COMMIT))
    assert step == WeightsStep(start=step.start, location="owner/name")
    program = (
        "import sys; from pathlib import Path; from openba.artifacts import Build;"
        "from openba.model import adopt;"
        "from openba.recipes.start import WeightsStep; from openba.errors import run_command;"
        "step = WeightsStep.model_validate_json(sys.argv[1]);"
        "sys.exit(run_command(lambda: adopt.build(Build(Path(sys.argv[2]), step, {}))))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program, step.model_dump_json(), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "the hub does not give it" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 64}, "hidden_size 32, and the model to train has 64; set model.d_model"),
        ({"norm": "rmsnorm"}, "set model.norm"),
        (
            {"vocab_multiple": 1024},
            "vocab_size 4224, and the model to train has 5120; set model.vocab_multiple",
        ),
        ({"head_bias": False}, "set model.head_bias"),
    ],
)
def test_weights_of_another_shape_are_one_line(
    released: Path, tokenizer: Tokenizer, change: dict[str, object], message: str
) -> None:
    wanted = ModelRecipe.model_validate({**MODEL, **change}).architecture(tokenizer.size)
    with pytest.raises(UserError, match=message) as error:
        start_weights(released, wanted, tokenizer)
    one_line(error)


def test_weights_of_another_tokenizer_are_one_line(
    released: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "spiece.model").write_bytes(tokenizer.path.read_bytes() + b"\x1a\x00")
    with pytest.raises(UserError, match=r"take theirs with tokenizer\.kind=weights") as error:
        start_weights(released, architecture(tokenizer), Tokenizer(tmp_path / "spiece.model"))
    one_line(error)


def test_a_tied_model_takes_the_releases_copy_of_the_head_and_an_untied_one_begins_with_it(
    released: Path, tokenizer: Tokenizer
) -> None:
    tied = start_weights(released, architecture(tokenizer), tokenizer)
    assert "lm_head.weight" not in tied
    untied = ModelRecipe.model_validate({**MODEL, "tie_embeddings": False}).architecture(tokenizer.size)
    assert torch.equal(
        start_weights(released, untied, tokenizer)["lm_head.weight"], tied["shared_embedding.weight"]
    )
    assert load_architecture(released).tie_word_embeddings is False


PIPELINE = """\
extends: experts
name: mine
model: {{extends: {model}, {shape}}}
experts: {{start: {{weights: {weights}}}}}
"""


def _pipeline(tmp_path: Path, weights: Path) -> Path:
    model = CONFIGS / "model" / "openba-15b-released"
    path = tmp_path / "mine.yaml"
    names = ("d_model", "num_heads", "kv_channels", "ffn", "encoder_layers", "decoder_layers")
    shape = ", ".join(f"{name}: {MODEL[name]}" for name in names)
    path.write_text(PIPELINE.format(model=model, weights=weights, shape=shape))
    return path


def test_the_content_of_the_weights_is_part_of_the_experts_identity(released: Path, tmp_path: Path) -> None:
    path = _pipeline(tmp_path, released)
    before = Pipeline(path).steps
    assert (
        before["chat"].inputs["start"] is before["tokenizer"].inputs["weights"] is before["weights-experts"]
    )
    weights = load_weights(released)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, released / WEIGHTS_FILE)
    after = Pipeline(path).steps
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert {"weights-experts", "tokenizer", "chat", "ner", "evaluate-chat"} <= changed
    assert not any(name.startswith(("task-", "baselines")) for name in changed)


def test_an_expert_may_begin_with_weights_of_its_own(released: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", Tokenizer(released / "spiece.model"), seed=1)
    path = _pipeline(tmp_path, released)
    steps = Pipeline(path, [f"experts.ner.start.weights={tmp_path / 'other'}"]).steps
    assert steps["ner"].inputs["start"].name == "weights-ner"
    assert steps["code"].inputs["start"].name == "weights-experts"


@pytest.mark.parametrize("name", ["experts", "continue"])
def test_the_shipped_pipelines_plan_without_weights_and_run_with_them_only(name: str) -> None:
    path = CONFIGS / "pipeline" / f"{name}.yaml"
    start = next(step for step in Pipeline(path).steps.values() if step.kind is WEIGHTS)
    assert "needs its commit" in str(start.outside["missing"])
    with pytest.raises(UserError, match=r"no such folder|no file there") as error:
        Pipeline(path, strict=True)
    one_line(error)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experts.start=null"], "experts.start: there is no stage"),
        (["experts.folder=null"], "stages: there is neither a stage nor an expert"),
        (["tokenizer={kind: unigram, vocab_size: 900}"], "there is none"),
        (["experts.start=stage3"], "kind weights takes that of the weights at the start"),
    ],
)
def test_a_pipeline_that_cannot_start_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pipeline(CONFIGS / "pipeline" / "experts.yaml", overrides)
