"""A rank's part of a model is cut from the whole one, though nobody ever holds that."""

from typing import Any

import pytest
import torch

from openba.errors import UserError
from openba.model.model import OpenBAModel
from openba.model.parallel import make_part, split_of
from openba.model.parallel_loss import TensorGroup
from openba.recipes.model import ModelRecipe

RECIPE = ModelRecipe(d_model=32, num_heads=4, kv_channels=8, ffn=64, encoder_layers=1, decoder_layers=2)
RELEASED = {"norm": "layernorm", "sandwich": False, "attention_bias": True, "head_bias": True}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "form", [{}, RELEASED, {"tie_embeddings": False}], ids=["paper", "release", "untied"]
)
@pytest.mark.parametrize("fresh", [True, False])
def test_parts_are_the_whole(form: dict[str, Any], ranks: int, fresh: bool) -> None:
    architecture = RECIPE.model_copy(update=form).architecture(500)
    torch.manual_seed(3)
    whole = OpenBAModel(architecture)
    if not fresh:
        whole.load_state_dict({name: torch.randn_like(value) for name, value in whole.state_dict().items()})
    parts = []
    for rank in range(ranks):
        torch.manual_seed(3)
        weights = None if fresh else whole.state_dict()
        part = make_part(architecture, TensorGroup(None, rank, ranks), weights)
        parts.append(dict(part.named_parameters()))
    assert parts[0].keys() == dict(whole.named_parameters()).keys()
    for name, expected in whole.named_parameters():
        pieces = [part[name].data for part in parts]
        split = split_of(parts[0][name])
        assert pieces[0].numel() == expected.numel() // (ranks if split else 1)
        assert all(part[name].device.type == "cpu" for part in parts)
        assert torch.equal(split.join(pieces) if split else pieces[-1], expected), name
    large = {name for name, expected in whole.named_parameters() if expected.dim() == 2}
    assert {name for name in large if split_of(parts[0][name])} == (large if ranks > 1 else set())


def test_heads_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(UserError, match=r"runtime.tensor_parallel: 3 ranks cannot share 4 heads"):
        make_part(RECIPE.architecture(500), TensorGroup(None, 0, 3))
