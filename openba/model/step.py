"""One decoder position for all rows: plain torch in as few calls as it takes, or compiled loops.

Generation runs the decoder once a token, and on a small model calls cost more than arithmetic. Owns that one
position's arithmetic, which is `DecoderBlock.forward`'s in evaluation mode with one new token, and the head
after it (`tests/model/test_step.py` holds the forms together). The loops are `compiled.py`'s, caches and the
greedy loop `decoding.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openba.model.blocks import DecoderBlock
from openba.model.layers import RMSNorm
from openba.model.rows import first
from openba.model.seq2seq import Seq2Seq

Norm = Callable[[Tensor], Tensor]


class Step(Protocol):
    """The decoder for one position, and the head."""

    def __call__(
        self, ids: Tensor, positions: Sequence[int], cache: Tensor, memory: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Hidden states `[rows, hidden]` of one token a row.

        Args:
            ids: int64 `[rows]`.
            positions: of these tokens; keys and values of all before are in `cache`.
            cache: `[layers, 2, at least rows, heads, positions, kv]`, contiguous; the new keys and values are
                written into it.
            memory: the sources' keys and values, `[layers, 2, at least rows, heads, source, kv]`, contiguous.
            lengths: tokens of each row's source.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` to fp32 `[rows, vocab]`."""
        ...


def make_step(model: Seq2Seq) -> Step:
    """The faster form: compiled loops for fp32 on a CPU, else torch."""
    weight = model.shared_embedding.weight
    if weight.device.type != "cpu" or any(x.dtype != torch.float32 for x in model.parameters()):
        return PlainStep(model)
    return CompiledStep(model)


class PlainStep:
    """In torch's calls: any precision, any device."""

    def __init__(self, model: Seq2Seq) -> None:
        self.model, self.heads = model, model.architecture.num_heads
        self.layers = [_Layer(cast(DecoderBlock, block)) for block in model.decoder.block]
        self.last_norm = _norm(model.decoder.final_layernorm)
        cos, sin = model.table()[:, :, 0]
        # x * cos + roll(x, half) * sin turns channel i with i + half; the sign of the first half is in `sin`.
        self.cos, self.sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def __call__(
        self, ids: Tensor, positions: Sequence[int], cache: Tensor, memory: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """See `Step`."""
        rows, width, reach = len(positions), max(positions) + 1, max(lengths)
        cache, memory = cache[:, :, :rows, :, :width], memory[:, :, :rows, :, :reach]
        bias, own_bias = hide(lengths, memory), hide([position + 1 for position in positions], cache)
        position: int | Tensor = positions[0]
        if own_bias is not None:  # rows of their own positions attend to all but what this hides
            position = torch.tensor(positions, device=ids.device)
        x = self.model.embed(ids)
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

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Step`."""
        return few_rows_linear(hidden, self.model.head_weight, self.model.lm_head.bias).float()


class CompiledStep:
    """In compiled loops, one call a layer: fp32 on a CPU."""

    def __init__(self, model: Seq2Seq) -> None:
        threads = torch.get_num_threads()
        # Here: a process that never decodes in fp32 on a CPU need not load the loops (0.6 s).
        from openba.model import compiled

        # Loading numba's pool sets OpenMP's number of threads, which is torch's, to all cores.
        torch.set_num_threads(threads)
        self.loops = compiled
        self.layers = [_loop_layer(cast(DecoderBlock, block)) for block in model.decoder.block]
        self.epsilon = model.architecture.layer_norm_epsilon
        self.embedding = _array(model.shared_embedding.weight)
        self.embedding_scale = np.float32(model.architecture.embedding_scale)
        self.cos, self.sin = (_array(table[:, 0]) for table in model.table())
        self.last_norm = _loop_norm(model.decoder.final_layernorm)
        self.head = _array(model.head_weight), _array(model.lm_head.bias)

    def __call__(
        self, ids: Tensor, positions: Sequence[int], cache: Tensor, memory: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """See `Step`."""
        x = self.embedding[ids.numpy()] * self.embedding_scale
        places, sources = np.array(positions, np.int64), np.array(lengths, np.int64)
        stored, known = cache.numpy(), memory.numpy()
        hidden = np.empty_like(x)
        with self.loops.pool(torch.get_num_threads()):
            for number, (weights, biases, norms) in enumerate(self.layers):
                self.loops.layer_step(
                    x, weights, biases, norms, self.epsilon, self.cos, self.sin,
                    places, sources, stored, known, number,
                )  # fmt: skip
            self.loops.norm(x, *self.last_norm, self.epsilon, hidden)
        return torch.from_numpy(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Step`."""
        out = np.empty((hidden.shape[0], self.head[0].shape[0]), np.float32)
        with self.loops.pool(torch.get_num_threads()):
            self.loops.linear(_array(hidden), *self.head, out)
        return torch.from_numpy(out)


def hide(lengths: Sequence[int], stored: Tensor) -> Tensor | None:
    """What to add to scores so that each row sees its first `lengths` places of `[..., places, kv]` only.

    `[rows, 1, 1, places]`; None where every row sees all.
    """
    width = stored.shape[-2]
    if all(length == width for length in lengths):
        return None
    mask = first(torch.tensor(lengths, device=stored.device), width)
    bias = torch.zeros(mask.shape, dtype=stored.dtype, device=stored.device)
    return bias.masked_fill_(~mask, -torch.inf)[:, None, None]


def _array(x: Tensor | None) -> Any:
    """The same memory for numba; empty for nothing."""
    return np.empty(0, np.float32) if x is None else x.detach().contiguous().numpy()


def _loop_norm(module: nn.Module) -> tuple[Any, Any]:
    return _array(getattr(module, "weight", None)), _array(getattr(module, "bias", None))


def _loop_layer(block: DecoderBlock) -> tuple[Any, ...]:
    """A layer's weights, biases and norms as `compiled.layer_step` wants them."""
    own, cross = block.self_attn, block.inter_attn
    attention = [own.qkv, own.o, cross.q, cross.o]
    weights = [layer.weight for layer in (*attention, block.mlp.fc_in, block.mlp.fc_out)]
    norms = [
        *(block.input_layernorm, block.self_attn_norm, block.post_attn_layernorm),
        *(block.inter_attn_norm, block.post_inter_attn_layernorm),
    ]
    biases = tuple(_array(layer.bias) for layer in attention)
    return tuple(map(_array, weights)), biases, tuple(map(_loop_norm, norms))


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
