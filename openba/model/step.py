"""One decoder position for all rows, in as few torch calls as it takes.

Generation runs the decoder once a token, and on a small model the calls cost more than the arithmetic. Owns
that one position's arithmetic, which is `DecoderBlock.forward`'s in evaluation mode with one new token
(`tests/model/test_generate.py` holds the two together), and nothing of caches or loops (`decoding.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openba.model.blocks import DecoderBlock
from openba.model.layers import RMSNorm
from openba.model.seq2seq import Seq2Seq

Norm = Callable[[Tensor], Tensor]


class Step:
    """The decoder's weights, looked up once, and the arithmetic of one position."""

    def __init__(self, model: Seq2Seq) -> None:
        self.heads = model.architecture.num_heads
        self.embedding = model.shared_embedding.weight
        self.layers = [_Layer(cast(DecoderBlock, block)) for block in model.decoder.block]
        self.last_norm = _norm(model.decoder.final_layernorm)
        cos, sin = model.table()[:, :, 0]
        # x * cos + roll(x, half) * sin turns channel i with i + half; the sign of the first half is in `sin`.
        self.cos, self.sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def __call__(
        self,
        ids: Tensor,
        position: int | Tensor,
        cache: Tensor,
        memory: Sequence[tuple[Tensor, Tensor]],
        bias: Tensor | None,
        own_bias: Tensor | None = None,
    ) -> Tensor:
        """Hidden states `[rows, hidden]` of ids int64 `[rows]` at `position`.

        Args:
            ids: the tokens.
            position: their place, the same for all rows; or int64 `[rows]`, each row's own.
            cache: `[layers, 2, rows, heads, positions, kv]`; the new keys and values are written into it.
            memory: per layer the source's keys and values, `[rows, heads, source, kv]` each.
            bias: added to cross-attention's scores, or None.
            own_bias: added to self-attention's scores, `[rows, 1, 1, positions]`: with positions of their
                own rows attend to the whole cache but for what this hides.
        """
        x = F.embedding(ids, self.embedding)
        cos, sin = self.cos[position], self.sin[position]
        if isinstance(position, Tensor):
            cos, sin = cos[:, None, None], sin[:, None, None]
        shape, half = (x.shape[0], self.heads, 3, cos.shape[-1]), cos.shape[-1] // 2
        for layer, (own, cross) in zip(self.layers, zip(cache, memory, strict=True), strict=True):
            packed = few_rows_linear(layer.own_norm(x), *layer.qkv).view(shape)
            turning = packed[:, :, :2]
            if packed.dtype == cos.dtype:
                rolled = turning.roll(half, -1)
                turning.mul_(cos).addcmul_(rolled, sin)
            else:
                wide = turning.float()
                turning.copy_(wide * cos + wide.roll(half, -1) * sin)
            known = _store(own, packed[:, :, 1:], position)
            mixed = F.scaled_dot_product_attention(packed[:, :, :1], known[0], known[1], own_bias)
            x = x + layer.own_out(few_rows_linear(mixed.reshape(ids.shape[0], -1), *layer.own_o))
            query = few_rows_linear(layer.cross_norm(x), *layer.q).view(ids.shape[0], self.heads, 1, -1)
            mixed = F.scaled_dot_product_attention(query, cross[0], cross[1], bias)
            x += layer.cross_out(few_rows_linear(mixed.reshape(ids.shape[0], -1), *layer.cross_o))
            gate, up = few_rows_linear(layer.mlp_norm(x), layer.fc_in).chunk(2, -1)
            x += few_rows_linear(F.silu(gate).mul_(up), layer.fc_out)
        return self.last_norm(x)


def _store(own: Tensor, new: Tensor, position: int | Tensor) -> Tensor:
    """Put keys and values `[rows, heads, 2, kv]` into a layer's cache; returns the part to attend to."""
    if isinstance(position, Tensor):
        own[:, torch.arange(len(position), device=position.device), :, position] = new.transpose(1, 2)
        return own
    own[:, :, :, position] = new.permute(2, 0, 1, 3)
    return own[:, :, :, : position + 1]


class _Layer:
    """One block's weights and norms."""

    def __init__(self, block: DecoderBlock) -> None:
        own, cross = block.self_attn, block.inter_attn
        self.qkv, self.own_o = (own.qkv.weight, own.qkv.bias), (own.o.weight, own.o.bias)
        self.q, self.cross_o = (cross.q.weight, cross.q.bias), (cross.o.weight, cross.o.bias)
        self.fc_in, self.fc_out = block.mlp.fc_in.weight, block.mlp.fc_out.weight
        self.own_norm, self.own_out = _norm(block.input_layernorm), _norm(block.self_attn_norm)
        self.cross_norm, self.cross_out = _norm(block.post_attn_layernorm), _norm(block.inter_attn_norm)
        self.mlp_norm = _norm(block.post_inter_attn_layernorm)


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, turned round for a few rows, which is faster on a CPU.

    27 MB of fp32 weights on 2 cores: 4 rows 9.2 ms against 3.3 turned round, 16 rows 10.1 against 5.5.
    """
    rows = x.shape[0]
    if rows == 1 or rows > 16 or x.dtype != torch.float32 or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    y = torch.mm(weight, x.T).T.contiguous()
    return y if bias is None else y.add_(bias)


def _norm(module: nn.Module) -> Norm:
    """A norm as a plain function."""
    if isinstance(module, nn.Identity):
        return lambda x: x
    if isinstance(module, RMSNorm):
        return _rms_norm(module.weight, module.epsilon)
    norm = cast(nn.LayerNorm, module)
    return lambda x: F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _rms_norm(weight: Tensor, epsilon: float) -> Norm:
    width = weight.shape[0]
    if weight.dtype not in (torch.float32, torch.float64) or weight.device.type != "cpu":
        return lambda x: F.rms_norm(x, (width,), weight, epsilon)
    floor = torch.full((1,), epsilon, dtype=weight.dtype)

    def norm(x: Tensor) -> Tensor:
        # Five small calls take half the time of torch's RMSNorm on a CPU, which is a longer chain inside.
        length = torch.linalg.vector_norm(x, 2, -1, True)
        return x.mul(weight).mul_(torch.addcmul(floor, length, length, value=1 / width).rsqrt_())

    return norm
