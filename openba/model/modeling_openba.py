"""The model at home in transformers: `from_pretrained`, `generate`, `Trainer`, the Auto classes.

Owns that interface: grids of ids with masks in, `Seq2SeqLMOutput` out, transformers' caches. The computation
is `seq2seq.py`'s. Loading is strict: a missing, unexpected or misshapen tensor is an error. Travels with
exported models, so it imports its neighbours, torch and transformers only.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from openba.model.blocks import DecoderAttention, FullAttention
from openba.model.configuration_openba import OpenBAConfig
from openba.model.layers import CrossAttention
from openba.model.loss import IGNORE, linear_cross_entropy
from openba.model.rows import Rows
from openba.model.seq2seq import Seq2Seq, check_ids, check_vocabulary, initialise

_LOG = logging.getLogger("transformers.modeling_utils")
_OWN_HEAD = (
    "tensor lm_head.weight is not the embedding that the config ties it to; set tie_word_embeddings to "
    "false, or leave the tensor out"
)


class OpenBAForConditionalGeneration(Seq2Seq, PreTrainedModel, GenerationMixin):
    """An OpenBA encoder-decoder with its head."""

    config_class = OpenBAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EncoderBlock", "DecoderBlock"]
    _tied_weights_keys = {"lm_head.weight": "shared_embedding.weight"}
    # The released class lists the embedding under both stacks too; its checkpoints do not hold those copies.
    _keys_to_ignore_on_load_unexpected = [r"^(encoder|decoder)\.embed_tokens\.weight$"]

    def __init__(self, config: OpenBAConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self._build(config.architecture(), tied_head_is_shared=True)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load as transformers does, but strictly.

        Raises:
            ValueError: a tensor is missing, unexpected or has another shape; the message names it.
            OSError: a file is missing or damaged.
        """
        # With it transformers lists tensors of another shape, else it refuses them without their names.
        kwargs["ignore_mismatched_sizes"] = True
        where = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        try:
            _LOG.addFilter(_no_report)
            loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise OSError(f"{where}: a file of weights is damaged ({error}); fetch it again") from None
        except NotImplementedError as error:
            # A head that cannot be the embedding stays empty, and transformers compares it all the same.
            raise (ValueError(f"{where}: {_OWN_HEAD}") if "aten::equal" in str(error) else error) from None
        finally:
            _LOG.removeFilter(_no_report)
        model, info = loaded
        tied = model.architecture.tie_word_embeddings
        if tied and model.lm_head.weight is not model.shared_embedding.weight:
            # transformers warns and leaves the two apart; the head's tensor would not be used.
            raise ValueError(f"{where}: {_OWN_HEAD}")
        if problem := _problem(info):
            raise ValueError(f"{where}: {problem}; weights and config do not belong together")
        return (model, info) if output_loading_info else model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits of the decoder's next tokens, and the mean loss if there are labels.

        Padding may stand on either side and is not computed. In training with labels there are no logits:
        the loss never makes them (see `loss.py`).

        Args:
            input_ids: int64 `[batch, source]`.
            attention_mask: The same shape, 0 for padding; none: no padding.
            decoder_input_ids: int64 `[batch, target]`; none: the labels, shifted right.
            decoder_attention_mask: `[batch, cached + target]`, 0 for padding.
            encoder_outputs: The encoder's `last_hidden_state` `[batch, source, hidden]`, in place of
                `input_ids`.
            past_key_values: Keys and values of earlier positions.
            labels: int64 `[batch, target]`, -100 where there is no loss.
            use_cache: Return keys and values; none: not in training.
            num_items_in_batch: Divide the summed loss by this, not by this call's labels (gradient
                accumulation).
            kwargs: `return_dict=False` for a tuple. Hidden states and attention weights are not kept.

        Raises:
            ValueError: no token in a row, an id outside the vocabulary, more tokens than positions.
        """
        _refuse(kwargs)
        if labels is not None:  # at once: shifted right, they are the decoder's input
            filled = labels.masked_fill(labels == IGNORE, 0)
            check_vocabulary(filled, self.architecture.vocab_size, "labels")
        if encoder_outputs is None:
            encoder_outputs = self.encoder_output(input_ids, attention_mask)
        encoded: Tensor = encoder_outputs[0]
        source = Rows.ragged(_mask(attention_mask, encoded[..., 0], "attention_mask"))
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        # In training a cache would hold every layer's keys and values for nothing.
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None and labels is None:
            past_key_values = EncoderDecoderCache(
                DynamicCache(config=self.config), DynamicCache(config=self.config)
            )
        # The encoder's output comes as a grid, from `generate` or from above; attention takes real tokens.
        hidden = self._decoded(decoder_input_ids, decoder_attention_mask, encoded, source, past_key_values)
        output = Seq2SeqLMOutput(
            loss=None if labels is None else self._loss(hidden, labels, num_items_in_batch),
            logits=None if labels is not None and self.training else self.logits(hidden),
            past_key_values=past_key_values if use_cache else None,
            encoder_last_hidden_state=encoded,
        )
        return output if kwargs.get("return_dict", True) is not False else output.to_tuple()

    def encoder_output(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> BaseModelOutput:
        """The encoder's output `[batch, source, hidden]`, zero at padding."""
        if input_ids is None:
            raise ValueError("input_ids: missing; give them, or encoder_outputs")
        mask = _mask(attention_mask, input_ids, "attention_mask")
        check_ids(input_ids, mask, self.architecture.vocab_size, "input_ids")
        rows = Rows.ragged(mask)
        encoded = self.encode(rows.flat(input_ids), rows)
        return BaseModelOutput(last_hidden_state=rows.grid(encoded, input_ids.shape[1]))

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels shifted right, the decoder's start token first."""
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        return torch.cat(
            [start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, self.config.pad_token_id)], 1
        )

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the module that `generate` calls for the encoder's output."""
        return _EncoderOfGrids(self)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, shared by both stacks."""
        return self.shared_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.shared_embedding = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = cast(nn.Linear, new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize as transformers does; embedding and head stay of one size."""
        resized = super().resize_token_embeddings(*args, **kwargs)
        self.architecture = self.config.architecture()
        return resized

    def _decoded(
        self,
        ids: Tensor | None,
        mask: Tensor | None,
        encoded: Tensor,
        source: Rows,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """Hidden states `[batch, target, hidden]`."""
        if ids is None:
            raise ValueError("decoder_input_ids: missing; give them, or labels")
        check_vocabulary(ids, self.architecture.vocab_size, "decoder_input_ids")
        if len(ids) != len(encoded):
            raise ValueError(f"decoder_input_ids: {len(ids)} rows, but {len(encoded)} of the encoder")
        attention: DecoderAttention
        if cache is None:
            rows = Rows.ragged(_mask(mask, ids, "decoder_attention_mask"))
            dropout = self.architecture.attention_dropout if self.training else 0.0
            attention = FullAttention(rows, source.flat(encoded), source, dropout)
        else:
            attention = CachedAttention(cache, ids.shape, mask, encoded, source)
            rows = attention.rows
        return rows.grid(self.decode(rows.flat(ids), rows, attention), ids.shape[1])

    def _loss(self, hidden: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        labelled = labels != IGNORE
        # Summed, then divided: under gradient accumulation the divisor is the whole batch's.
        total = linear_cross_entropy(hidden[labelled], self.head_weight, self.lm_head.bias, labels[labelled])
        return total / (labelled.sum().clamp(min=1) if count is None else count)

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.initializer_range, init.normal_)


class CachedAttention:
    """A decoder's attention over transformers' cache: new positions against all so far."""

    def __init__(
        self,
        cache: EncoderDecoderCache,
        shape: torch.Size,
        mask: Tensor | None,
        encoded: Tensor,
        source: Rows,
    ) -> None:
        self.cache, self.shape, self.encoded, self.source = cache, shape, encoded, source
        past = int(cache.get_seq_length())
        batch, length = shape
        device = encoded.device
        if mask is not None and mask.dim() == 4:
            # For a static cache `generate` sends `[batch, 1, target, keys]`, bool or added to the scores;
            # the last query sees all that is real.
            mask = mask[:, 0, -1, : past + length]
            mask = mask == 0 if mask.is_floating_point() else mask
        elif mask is not None:
            _check_shape(mask, (batch, past + length), "decoder_attention_mask")
        if mask is None or bool(mask.all()):
            self.visible = None
            positions = torch.arange(past, past + length, device=device).expand(batch, -1)
        else:
            self.visible = mask.bool()
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        self.rows = Rows((past + length,) * batch, length, positions.flatten())
        self.places = torch.arange(past, past + length, device=device)

    def attend_self(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values, attend to all so far."""
        keys, values = self.cache.self_attention_cache.update(self._grid(key), self._grid(value), layer_index)
        return self._attend(query, keys, values, self._causal(keys.shape[-2]))

    def attend_cross(self, layer_index: int, query: Tensor, projection: CrossAttention) -> Tensor:
        """Attend to the encoder's output, whose keys and values are computed once."""
        cross = self.cache.cross_attention_cache
        width = self.encoded.shape[1]
        if not self.cache.is_updated.get(layer_index):
            key, value = projection.memory(self.source.flat(self.encoded))
            grid = (self.source.grid(x, width).transpose(1, 2) for x in (key, value))
            cross.update(next(grid), next(grid), layer_index)
            self.cache.is_updated[layer_index] = True
        # transformers declares its cache layers without the attributes that a filled one has.
        stored: Any = cross.layers[layer_index]
        mask = None
        if self.source.index is not None:
            ones = torch.ones_like(self.source.index, dtype=torch.bool)
            mask = self.source.grid(ones, width)[:, None, None, :]
        return self._attend(query, stored.keys, stored.values, mask)

    def _causal(self, keys: int) -> Tensor | None:
        """Bool `[batch or 1, 1, target, keys]`, or none where a single query sees all keys."""
        if self.visible is None and len(self.places) == 1 and keys == int(self.places[0]) + 1:
            return None
        mask = (torch.arange(keys, device=self.places.device) <= self.places[:, None])[None, None]
        if self.visible is None:
            return mask
        seen = F.pad(self.visible, (0, keys - self.visible.shape[1]))[:, None, None, :]
        return mask & seen

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        mixed = F.scaled_dot_product_attention(self._grid(query), keys, values, mask)
        return mixed.transpose(1, 2).flatten(0, 1)

    def _grid(self, x: Tensor) -> Tensor:
        """`[batch * target, heads, kv]` to `[batch, heads, target, kv]`."""
        return x.unflatten(0, self.shape).transpose(1, 2)


class _EncoderOfGrids(nn.Module):
    """The encoder with transformers' arguments. Refers to the model without owning it."""

    def __init__(self, model: OpenBAForConditionalGeneration) -> None:
        super().__init__()
        self._model = [model]

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """See `OpenBAForConditionalGeneration.encoder_output`."""
        _refuse(kwargs)
        return self._model[0].encoder_output(input_ids, attention_mask)


def _no_report(record: logging.LogRecord) -> bool:
    """Suppress transformers' table of tensors: its content is an error of one line here."""
    return "LOAD REPORT" not in record.getMessage()


def _problem(info: dict[str, Any]) -> str | None:
    """Describe the first tensor that is missing, unexpected or misshapen."""
    # A tied head is missing where the embedding is; the embedding is what the files lack.
    for name in sorted(info["missing_keys"], key=lambda name: (name == "lm_head.weight", name)):
        return f"tensor {name} is missing"
    for name in sorted(info["unexpected_keys"]):
        return f"tensor {name} is unexpected"
    for name, file_shape, model_shape in sorted(info["mismatched_keys"]):
        return f"tensor {name} has shape {list(file_shape)}, not {list(model_shape)}"
    return None


def _mask(mask: Tensor | None, like: Tensor, what: str) -> Tensor:
    """A bool mask of `like`'s shape."""
    if mask is None:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    _check_shape(mask, like.shape, what)
    return mask.bool()


def _check_shape(mask: Tensor, shape: tuple[int, ...], what: str) -> None:
    if mask.shape != shape:
        raise ValueError(f"{what}: its shape is {list(mask.shape)}, not {list(shape)} as its tokens'")


def _refuse(kwargs: dict[str, Any]) -> None:
    """Refuse arguments that are not supported."""
    for name in ("output_attentions", "output_hidden_states", "inputs_embeds", "decoder_inputs_embeds"):
        if kwargs.get(name) is not None and kwargs.get(name) is not False:
            raise ValueError(
                f"{name}: not supported; the fused attention keeps no weights, ids are the only input"
            )


OpenBAConfig.register_for_auto_class()
OpenBAForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
