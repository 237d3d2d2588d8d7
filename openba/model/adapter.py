"""Adapters by peft: injected into a model before training, written as a few megabytes, merged when loaded.

Owns the folder of an adapter: peft's own two files, the tokenizer's, and `base.json`, which says on which
weights it stands and by what digest they are recognised. peft imports transformers, which takes seconds, so
only trainings and models with an adapter import this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from peft import LoraConfig, LoraModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from openba.errors import UserError
from openba.model.adapter_base import BASE_FILE, base_of, digest_of_weights, is_adapter, whole_base_of
from openba.model.files import EMBEDDING, HEAD, load_architecture, load_weights, restore
from openba.model.grown_embedding import NEW_ROWS, GrownEmbedding
from openba.model.grown_rows import grow_rows
from openba.model.model import OpenBAModel
from openba.recipes.adapter import AdapterRecipe
from openba.tokenizer.files import write_tokenizer_files
from openba.tokenizer.tokenizer import Tokenizer

ADAPTER_WEIGHTS = "adapter_model.safetensors"
GROWN_ROWS = "new_rows.safetensors"
"""Rows of tokens that the base lacks, where an expert added some; peft does not read them."""
_NAME = "default"
_PREFIX = "base_model.model."
"""Of peft's names in a file; the model that it wraps is below two modules of its own."""


def add_adapter(model: OpenBAModel, recipe: AdapterRecipe) -> None:
    """Put an untrained adapter into a model, in place, and freeze everything else.

    Its first factor is drawn from the common generator, its second one is zero: nothing changes at first.
    """
    LoraModel(cast(nn.Module, model), _config(recipe), _NAME)


def train_new_rows(model: OpenBAModel, first_id: int, count: int) -> None:
    """Train the embedding's rows of new tokens too, in place; the rest of it stays frozen.

    Raises:
        UserError: the head is not tied, so that its rows would not be learnt.
    """
    if not model.architecture.tie_word_embeddings:
        raise UserError(
            "adapter: rows of new tokens are trained in a tied embedding only; set "
            "model.tie_embeddings=true, or leave `grow` or the adapter out"
        )
    embedding = model.shared_embedding
    model.shared_embedding = cast(nn.Embedding, GrownEmbedding(embedding, first_id, count))


def narrow_frozen(model: OpenBAModel, precision: Literal["fp32", "bf16", "fp16"]) -> None:
    """Put frozen weights into the precision that they compute in, in place.

    Before the model goes to a device: 15B frozen numbers are 29 GB in half precision and 58 GB in fp32.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a model that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class AdapterWriter:
    """Writes the adapter of one training."""

    model: OpenBAModel
    recipe: AdapterRecipe
    tokenizer: Tokenizer
    base: Path
    """Folder of the frozen weights."""

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write the trained weights, named as the model's parameters, as a folder of peft's form.

        `PeftModel.from_pretrained(base_model, folder)` reads it, and so does `load_adapted`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        weights = dict(weights)
        new_rows = weights.pop(f"shared_embedding.{NEW_ROWS}", None)
        if new_rows is not None:
            _save(folder / GROWN_ROWS, {NEW_ROWS: new_rows})
        adapter_tensors = get_peft_model_state_dict(self.model, state_dict=weights, adapter_name=_NAME)
        named_tensors = {_PREFIX + name: tensor for name, tensor in adapter_tensors.items()}
        _save(folder / ADAPTER_WEIGHTS, named_tensors)
        adapter_config = _config(self.recipe)
        adapter_config.base_model_name_or_path = str(self.base)
        adapter_config.inference_mode = True
        adapter_config.save_pretrained(str(folder))
        base_record = {"folder": str(self.base), "digest": digest_of_weights(self.base)}
        (folder / BASE_FILE).write_text(json.dumps(base_record, indent=2) + "\n", encoding="utf-8")
        length_limit = self.model.architecture.max_seq_length
        write_tokenizer_files(folder, self.tokenizer, model_max_length=length_limit)


def load_adapted(folder: Path) -> tuple[OpenBAModel, Tokenizer]:
    """Return the base of an adapter's folder with the adapter merged, in evaluation mode, and the tokenizer.

    The model has the adapter's precision.

    Raises:
        UserError: the base is not there, is another one than in training, or a file is damaged.
    """
    with torch.device("meta"):
        model = OpenBAModel(load_architecture(whole_base_of(folder)))
    adapter_tensors = load_weights(folder, ADAPTER_WEIGHTS)
    dtype = next(iter(adapter_tensors.values())).dtype
    # A copy: merging adds to the weights, and those that are read are mapped files.
    base_weights = {name: tensor.to(dtype, copy=True) for name, tensor in base_weights_of(folder).items()}
    tokenizer = Tokenizer.load(folder)
    if (folder / GROWN_ROWS).exists():
        base_weights = _with_new_rows(base_weights, folder, tokenizer)
        # The rows were trained in a tied embedding (`train_new_rows`), also over a base whose files hold a
        # copy of it as the head: that copy lacks them.
        base_weights.pop(HEAD, None)
        vocab_size = len(base_weights[EMBEDDING])
        with torch.device("meta"):
            shape = replace(model.architecture, vocab_size=vocab_size, tie_word_embeddings=True)
            model = OpenBAModel(shape)
    restore(model, base_weights, folder, assign=True)
    return merged(model, adapter_tensors, folder).eval(), tokenizer


def _with_new_rows(weights: dict[str, Tensor], folder: Path, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Return the base's weights with the rows of the tokens that the adapter's tokenizer has more."""
    new_rows = load_weights(folder, GROWN_ROWS)[NEW_ROWS]
    base_tokenizer = Tokenizer.load(base_of(folder))
    first_id = tokenizer.size - len(new_rows)
    if first_id != base_tokenizer.size:
        raise UserError(f"{folder / GROWN_ROWS}: has rows from id {first_id} on, its base ends elsewhere")
    row_count = max(len(weights[EMBEDDING]), tokenizer.size)
    grown_weights = grow_rows(weights, base_tokenizer, tokenizer, row_count)
    grown_weights[EMBEDDING][first_id : tokenizer.size] = new_rows
    return grown_weights


def base_weights_of(folder: Path) -> dict[str, Tensor]:
    """Return the weights that an adapter stands on; of one that stands on another, merged ones."""
    base = base_of(folder)
    if is_adapter(base):
        return load_adapted(base)[0].state_dict()
    return load_weights(base)


def merged(model: OpenBAModel, tensors: dict[str, Tensor], folder: Path) -> OpenBAModel:
    """Return the model with an adapter's tensors merged into its weights.

    Raises:
        UserError: the adapter's files do not fit the model or each other.
    """
    try:
        lora_config = LoraConfig.from_pretrained(str(folder))
        tuner = LoraModel(cast(nn.Module, model), lora_config, _NAME)
        plain_names = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
        outcome = set_peft_model_state_dict(tuner.model, plain_names, adapter_name=_NAME)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the adapter does not fit its base ({reason}); train it again") from None
    unexpected_keys: list[str] = outcome.unexpected_keys  # type: ignore[attr-defined]
    missing_keys: list[str] = outcome.missing_keys  # type: ignore[attr-defined]
    wrong_names = [*unexpected_keys, *(name for name in missing_keys if ".lora_" in name)]
    if wrong_names:
        raise UserError(
            f"{folder / ADAPTER_WEIGHTS}: {wrong_names[0]} is missing or unexpected; fetch it again"
        )
    return cast(OpenBAModel, tuner.merge_and_unload())


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors makes it readable by its owner only


def _config(recipe: AdapterRecipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=cast(int, recipe.scale),
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.targets),
        use_rslora=recipe.kind == "rslora",
        use_dora=recipe.kind == "dora",
    )
