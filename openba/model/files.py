"""A model on disk: one folder in transformers' layout, with the code that reads it.

Owns the exported form that stages hand to each other and that the registry points to: `config.json`,
`generation_config.json`, safetensors (in shards above 5 GB), the tokenizer's files, and the modules that
`trust_remote_code` loads. Released checkpoints have the same layout, so they load here too. Loading never
unpickles, and needs no transformers, whose import takes seconds.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openba.errors import UserError
from openba.model.exported_code import exported_code
from openba.model.model import OpenBAModel
from openba.model.usage_card import CARD, usage_card
from openba.recipes.architecture import Architecture
from openba.tokenizer.files import write_tokenizer_files
from openba.tokenizer.tokenizer import Tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
"""The last two: the form of the released checkpoints (release); read, never written."""
SHARD = "5GB"
RELEASED_SHARD = "10GB"
EMBEDDING = "shared_embedding.weight"
HEAD = "lm_head.weight"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Precisions in which weights are read."""
IGNORED = re.compile(r"(encoder|decoder)\.embed_tokens\.weight")
"""Copies of the embedding that the released class, though not the release, puts into its state dict."""


def save_model(
    folder: Path, weights: dict[str, Tensor], architecture: Architecture, tokenizer: Tokenizer
) -> None:
    """Write a model that this package, and transformers without it, can load.

    Args:
        folder: made if it is not there.
        weights: of any dtype, named as `OpenBAModel.state_dict()`.
        architecture: their shape.
        tokenizer: its files go into the folder as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = weights[EMBEDDING].dtype
    special = {
        "pad_token_id": tokenizer.pad,
        "eos_token_id": tokenizer.eos,
        "decoder_start_token_id": tokenizer.pad,
    }
    config = {name: getattr(architecture, name) for name in Architecture.names()} | special
    config |= {
        "model_type": "openba",
        "architectures": ["OpenBAForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_openba.OpenBAConfig",
            "AutoModel": "modeling_openba.OpenBAEncoderDecoder",
            "AutoModelForSeq2SeqLM": "modeling_openba.OpenBAForConditionalGeneration",
        },
        "dtype": str(dtype).removeprefix("torch."),
        "is_encoder_decoder": True,
        "bos_token_id": tokenizer.pad,
        "use_cache": True,
    }
    _write_json(folder / CONFIG, config)
    # Every answer begins with <extra_id_0>, as `openba.model.generate` begins it (release).
    generation: dict[str, Any] = special | {"forced_bos_token_id": tokenizer.sentinel(0)}
    # Rows that pad the embedding to a multiple stand for no token; sampling must not draw them.
    if padding_ids := list(range(tokenizer.size, architecture.vocab_size)):
        generation["suppress_tokens"] = padding_ids
    _write_json(folder / "generation_config.json", generation)
    write_weights(folder, weights, SHARD)
    write_tokenizer_files(folder, tokenizer, model_max_length=architecture.max_seq_length)
    parameters = sum(tensor.numel() for tensor in weights.values())
    (folder / CARD).write_text(usage_card(architecture, parameters), encoding="utf-8")
    for name, text in exported_code().items():
        (folder / name).write_text(text, encoding="utf-8")


def write_released(folder: Path, weights: dict[str, Tensor], architecture: Architecture) -> None:
    """Write weights and config in the released form: fp16, an own copy of the head, the released keys only.

    Raises:
        UserError: the model has what the released form cannot say (RMSNorm, sandwich norm, another FFN rule).
    """
    released = Architecture(vocab_size=1, hidden_size=1, kv_channels=2, num_heads=1, ffn_hidden_size=1,
                            num_layers=1, num_decoder_layers=1)  # fmt: skip
    extra = (
        *("norm", "sandwich_norm", "ffn_multiple", "rope_theta", "layer_norm_epsilon"),
        "scale_embedding",
    )
    for name in extra:
        if getattr(architecture, name) != getattr(released, name):
            raise UserError(
                f"--format released: {name} is {getattr(architecture, name)!r}; the released form allows "
                f"{getattr(released, name)!r} only; take --format safetensors"
            )
    folder.mkdir(parents=True, exist_ok=True)
    keys = {name: getattr(architecture, name) for name in Architecture.names() if name not in extra}
    del keys["initializer_range"]
    keys |= {
        "tie_word_embeddings": False,
        "add_ffn_bias": False,
        "model_type": "openba",
        "is_encoder_decoder": True,
    }
    keys |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dtype": "float16"}
    _write_json(folder / CONFIG, keys)
    # The release has fp16 weights and an untied copy of the head.
    half_weights = {name: tensor.half() for name, tensor in weights.items()}
    half_weights[HEAD] = half_weights.get(HEAD, half_weights[EMBEDDING]).clone()
    write_weights(folder, half_weights, RELEASED_SHARD)


def write_weights(folder: Path, weights: dict[str, Tensor], shard: str) -> None:
    """`model.safetensors`, or shards of at most `shard` with their index."""
    host_weights = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
    split = split_torch_state_dict_into_shards(host_weights, max_shard_size=shard)
    for name, keys in split.filename_to_tensors.items():
        path = folder / name
        path.touch()
        mode = path.stat().st_mode
        save_file({key: host_weights[key] for key in keys}, path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors replaces the file by one that only its owner can read (its issue 782)
    if split.is_sharded:
        size = sum(tensor.numel() * tensor.element_size() for tensor in host_weights.values())
        _write_json(
            folder / INDEX, {"metadata": {"total_size": size}, "weight_map": split.tensor_to_filename}
        )


def weights_folder(stage: Path, step: int | None = None) -> Path:
    """Return the folder of a training's exported model, of its end or of a step whose weights it keeps."""
    return stage / "model" if step is None else stage / "steps" / str(step)


def load_weights(folder: Path, file_name: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a model's folder, from one file or from all shards of its index.

    Args:
        folder: of a model.
        file_name: the one file to read; None: those of the whole model.

    Raises:
        UserError: a file is missing or damaged, or a shard lacks a tensor that the index names.
    """
    if file_name is not None:
        return _read(folder / file_name)
    index = next((folder / name for name in (INDEX, TORCH_INDEX) if (folder / name).exists()), None)
    if index is None:
        has_torch_file = (folder / TORCH_WEIGHTS).exists() and not (folder / WEIGHTS).exists()
        return _read(folder / (TORCH_WEIGHTS if has_torch_file else WEIGHTS))
    places: dict[str, str] = _read_json(index)["weight_map"]
    weights: dict[str, Tensor] = {}
    # Shard by shard, in the order of their names: each file is opened once.
    for name in sorted(set(places.values())):
        weights |= _read(folder / name)
    if lost := sorted(set(places) - set(weights)):
        raise UserError(f"{folder / places[lost[0]]}: tensor {lost[0]} is not in it; fetch the shard again")
    return weights


def load_architecture(folder: Path) -> Architecture:
    """Read the shape of a model's folder; keys that a released config lacks have the release's values.

    Raises:
        UserError: no readable config, or a value that no model can have.
    """
    config = _read_json(folder / CONFIG)
    try:
        return Architecture(**{name: config[name] for name in Architecture.names() if name in config})
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None


def restore(model: OpenBAModel, weights: dict[str, Tensor], where: Path, assign: bool = False) -> None:
    """Load weights into a model, all of them and no others.

    Raises:
        UserError: see `fitting`.
    """
    model.load_state_dict(fitting(model, weights, where), strict=True, assign=assign)


def fitting(model: OpenBAModel, weights: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Return the weights that a model of this shape takes, all of them and no others.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape or quantised, or a tied head is no copy
            of the embedding; the message names it.
    """
    state = model.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if not IGNORED.fullmatch(name)}
    copied = HEAD in weights and HEAD not in state and EMBEDDING in weights
    if copied and not torch.equal(weights.pop(HEAD), weights[EMBEDDING]):
        raise UserError(
            f"{where}: tensor {HEAD} is not the embedding that the config ties it to; set "
            "tie_word_embeddings to false, or leave the tensor out"
        )
    problem = next((f"tensor {name} is missing" for name in state if name not in weights), None)
    problem = problem or next((f"tensor {name} is unexpected" for name in weights if name not in state), None)
    shapes = ((name, list(weights.get(name, state[name]).shape), list(state[name].shape)) for name in state)
    problem = problem or next(
        (f"tensor {name} has shape {a}, not {b}" for name, a, b in shapes if a != b), None
    )
    if problem:
        raise UserError(f"{where}: {problem}; weights and config do not belong together")
    for name, tensor in weights.items():
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{where}: tensor {name} is {str(tensor.dtype).removeprefix('torch.')}; quantised weights "
                "are not read, give them in float16, bfloat16 or float32"
            )
    return weights


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".bin":
            # weights_only: the restricted unpickler builds tensors and plain containers, and calls no code.
            return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        return load_file(path)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: not readable ({reason}); fetch it again, or rebuild the step that wrote it"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); rebuild the step that wrote it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; rebuild the step that wrote it")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
