"""Several adapters beside one base: rows of different adapters are computed in one batch.

Owns the layers that add each row's own update, and which token belongs to which adapter. Weights come from
the folders that `adapter.py` writes; peft is not needed, since LoRA and rsLoRA are two products.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from openba.errors import UserError
from openba.model.adapter_base import ADAPTER_CONFIG, BASE_FILE, digest_of_weights, is_adapter
from openba.model.files import load_weights
from openba.model.layers import linear
from openba.model.model import OpenBAModel
from openba.tokenizer.tokenizer import Tokenizer

NO_ADAPTER = -1
"""Number of a row that the base alone answers."""
Factors = tuple[Tensor, Tensor]
"""`[rank, inputs]` and `[outputs, rank]`, the scale in the second."""
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


class AdapterBank:
    """Adapters of one base model, whose layers it replaces."""

    def __init__(self, model: OpenBAModel, base_folder: Path, adapter_folders: Mapping[str, Path]) -> None:
        """Load adapters and put their layers into the model, in place.

        Args:
            model: of the folder `base_folder`.
            base_folder: of the weights that the adapters were trained on.
            adapter_folders: name -> folder of an adapter.

        Raises:
            UserError: a folder holds no adapter of this base, or one whose rows cannot be added: DoRA, or one
                with tokens of its own.
        """
        self.names = list(adapter_folders)
        self.groups: list[tuple[int, Tensor | None]] = []
        """Adapters of the tokens that are computed next: number, and the tokens; None: all of them."""
        tokenizer = Tokenizer.load(base_folder)
        updates = [_read_updates(folder, base_folder, tokenizer) for folder in adapter_folders.values()]
        weight = model.shared_embedding.weight
        for layer_path in sorted({path for update in updates for path in update}):
            layer = cast(nn.Linear, model.get_submodule(layer_path))
            factors = [update.get(layer_path) for update in updates]
            bank_layer = BankLinear(layer, factors, self).to(device=weight.device, dtype=weight.dtype)
            parent_path, _, layer_name = layer_path.rpartition(".")
            setattr(model.get_submodule(parent_path), layer_name, bank_layer)

    def select(
        self, row_adapters: Sequence[int], tokens_per_row: Sequence[int], device: torch.device
    ) -> None:
        """Say which adapter the tokens have that are computed next, in the order of their rows.

        Args:
            row_adapters: number of each row's adapter, or `NO_ADAPTER`.
            tokens_per_row: tokens of each row, one after the other.
            device: of the model.
        """
        numbers = sorted(set(row_adapters))
        if len(numbers) == 1:
            self.groups = [] if numbers[0] == NO_ADAPTER else [(numbers[0], None)]
            return
        adapters = torch.tensor(list(row_adapters), device=device)
        token_counts = torch.tensor(list(tokens_per_row), device=device)
        token_adapters = adapters.repeat_interleave(token_counts)
        self.groups = [
            (number, (token_adapters == number).nonzero().squeeze(-1))
            for number in numbers
            if number != NO_ADAPTER
        ]


class BankLinear(nn.Module):
    """A linear layer, and for the tokens of each adapter its update."""

    def __init__(self, layer: nn.Linear, factors: Sequence[Factors | None], bank: AdapterBank) -> None:
        """Take the layer and each adapter's factors; None: it leaves this layer as it is."""
        super().__init__()
        self.layer = layer
        self.adapter_numbers = {number for number, pair in enumerate(factors) if pair is not None}
        for number, pair in enumerate(factors):
            if pair is not None:
                self.register_buffer(f"down_{number}", pair[0], persistent=False)
                self.register_buffer(f"up_{number}", pair[1], persistent=False)
        self._bank = [bank]  # in a list: no submodule

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[tokens, inputs]` to `[tokens, outputs]`."""
        outputs = linear(self.layer, hidden_states)
        for number, tokens in self._bank[0].groups:
            if number not in self.adapter_numbers:
                continue
            down = self.get_buffer(f"down_{number}")
            up = self.get_buffer(f"up_{number}")
            if tokens is None:
                outputs = outputs + (hidden_states @ down.T) @ up.T
            else:
                update = (hidden_states[tokens] @ down.T) @ up.T
                outputs = outputs.index_add(0, tokens, update)
        return outputs


def _read_updates(folder: Path, base_folder: Path, tokenizer: Tokenizer) -> dict[str, Factors]:
    """Return the factors of each layer that an adapter updates, by the layer's path in the model."""
    if not is_adapter(folder):
        raise UserError(f"{folder}: holds no adapter; `train: {{adapter: ...}}` makes one")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        digest = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))["digest"]
        divisor = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
        scale = config["lora_alpha"] / divisor
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: its config is not readable ({error}); train the adapter again") from None
    if digest != digest_of_weights(base_folder):
        raise UserError(
            f"{folder}: was trained on other weights than {base_folder}; serve it over its own base"
        )
    if config.get("use_dora"):
        raise UserError(f"{folder}: DoRA rescales the weights, so it shares no batch; export it merged")
    if Tokenizer.load(folder).size != tokenizer.size:
        raise UserError(f"{folder}: has tokens that its base lacks; export it merged and serve it by itself")
    tensors = load_weights(folder, _WEIGHTS)
    layers = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        layer.removeprefix(_PREFIX): (
            tensors[f"{layer}.lora_A.weight"],
            scale * tensors[f"{layer}.lora_B.weight"],
        )
        for layer in layers
    }
