"""The model at home in transformers: `from_pretrained`, `generate`, `Trainer`, the Auto classes.

Owns that interface: grids of ids with masks in, transformers' outputs and caches out. The computation is
`seq2seq.py`'s. `config` is the one truth about the shape. Every layer is called, so hooks are heard, and so
is what stands in for a layer: an adapter, a quantised or an offloaded one. Loading is strict: a missing,
unexpected or misshapen tensor is an error. Travels with exported models, so it imports its neighbours, torch
and transformers only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput

from openba.model.blocks import (
    Decoder,
    DecoderAttention,
    Encoder,
    EncoderAttention,
    FullAttention,
    SourceAttention,
)
from openba.model.configuration_openba import OpenBAConfig
from openba.model.functions import rotary_table
from openba.model.grid_attention import AttentionWeights, CachedAttention, Grid, GridAttention, check_shape
from openba.model.layers import is_plain, linear
from openba.model.load_report import HEAD, problem_of, without_report
from openba.model.loss import IGNORE, linear_cross_entropy
from openba.model.rows import Rows
from openba.model.seq2seq import Seq2Seq, check_rows, check_vocabulary, initialise
from openba.recipes.architecture import Architecture

_EMBEDDING = "shared_embedding.weight"
_OWN_HEAD = (
    "tensor lm_head.weight is not the embedding that the config ties it to; set tie_word_embeddings to "
    "false, or leave the tensor out"
)


@dataclass
class _Wanted:
    """Intermediate results that a forward pass is to return."""

    attentions: bool
    """Attention probabilities, for which the pass computes padding too."""
    hidden_states: bool

    @classmethod
    def of(cls, config: OpenBAConfig, kwargs: dict[str, Any]) -> _Wanted:
        """Return what the arguments ask for, or else the config."""
        wanted = []
        for name in ("output_attentions", "output_hidden_states"):
            argument = kwargs.get(name)
            wanted.append(bool(getattr(config, name) if argument is None else argument))
        return cls(*wanted)

    @property
    def needs_grid(self) -> bool:
        """Whether padding is computed: for attention probabilities, and in a graph that is compiled.

        A graph cannot depend on the lengths of its rows.
        """
        return self.attentions or torch.compiler.is_compiling()


@dataclass
class _Stacked:
    """Results of one stack."""

    hidden: Tensor
    """`[batch, width, hidden]`, zero at padding."""
    states: tuple[Tensor, ...] | None
    """Input of each block and the output, if they are wanted."""
    weights: AttentionWeights
    """Attention probabilities, empty unless they are wanted."""


class OpenBAPreTrainedModel(Seq2Seq, PreTrainedModel):
    """Embedding and both stacks with transformers' loading, saving and inputs."""

    config: OpenBAConfig
    config_class = OpenBAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EncoderBlock", "DecoderBlock"]
    # The released class lists the embedding under both stacks too; its checkpoints do not hold those copies.
    _keys_to_ignore_on_load_unexpected = [r"^(encoder|decoder)\.embed_tokens\.weight$"]

    def __init__(self, config: OpenBAConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self._build(config.architecture(), tied_head_is_shared=True)
        self.post_init()

    @property
    def architecture(self) -> Architecture:  # type: ignore[override]  # follows the config, also when it changes
        """The shape as the config has it now."""
        return self.config.architecture()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load as transformers does, but strictly.

        `tie_word_embeddings=False` on a tied model's folder gives the head a copy of the embedding.

        Raises:
            ValueError: a tensor is missing, unexpected or has another shape; the message names it.
            OSError: a file is missing or damaged.
        """
        # With it transformers lists tensors of another shape, else it refuses them without their names.
        kwargs["ignore_mismatched_sizes"] = True
        where = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        try:
            with without_report():
                loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise OSError(f"{where}: a file of weights is damaged ({error}); fetch it again") from None
        except NotImplementedError as error:
            # A head that cannot be the embedding stays empty, and transformers compares it all the same.
            raise (ValueError(f"{where}: {_OWN_HEAD}") if "aten::equal" in str(error) else error) from None
        model, info = loaded
        model._settle_head(info["missing_keys"], where)
        if problem := problem_of(info):
            raise ValueError(f"{where}: {problem}; weights and config do not belong together")
        return (model, info) if output_loading_info else model

    def _settle_head(self, missing_keys: set[str], where: Any) -> None:
        """Refuse a tied head that is not the embedding; copy it to an untied one that the files lack."""
        head = getattr(self, "lm_head", None)
        if head is None:
            return
        if self.config.tie_word_embeddings:
            if head.weight is not self.shared_embedding.weight:
                # transformers warns and leaves the two apart; the head's tensor would not be used.
                raise ValueError(f"{where}: {_OWN_HEAD}")
        elif missing_keys == {HEAD}:
            with torch.no_grad():
                head.weight.copy_(self.shared_embedding.weight)
            missing_keys.clear()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the module that `generate` calls for the encoder's output."""
        return _EncoderOfGrids(self)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding, shared by both stacks."""
        return self.shared_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.shared_embedding = cast(nn.Embedding, value)

    def encoder_output(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Return the encoder's output `[batch, source, hidden]`, zero at padding; see `forward`."""
        wanted = _Wanted.of(self.config, kwargs)
        embedded = self._embed_grid(input_ids, inputs_embeds, "input_ids", "inputs_embeds")
        mask = _mask(attention_mask, embedded, "attention_mask")
        if not torch.compiler.is_compiling():
            check_rows(mask, "input_ids")
        weights = AttentionWeights()
        rows = _layout(mask, wanted)
        dropout = self._attention_dropout()
        attention: EncoderAttention
        if isinstance(rows, Grid):
            attention = GridAttention(mask, dropout, weights if wanted.attentions else None)
        else:
            attention = SourceAttention(rows, dropout)
        stacked = self._run_stack(self.encoder, embedded, rows, attention, weights, wanted)
        return BaseModelOutput(
            last_hidden_state=stacked.hidden,
            hidden_states=stacked.states,
            attentions=tuple(weights.self_attention) or None,
        )

    def _decode_grid(
        self,
        embedded: Tensor,
        mask: Tensor | None,
        encoded: Tensor,
        source_mask: Tensor,
        cache: EncoderDecoderCache | None,
        wanted: _Wanted,
    ) -> _Stacked:
        """Run the decoder over embeddings `[batch, target, hidden]`; the rest is as in `forward`."""
        if len(embedded) != len(encoded):
            raise ValueError(f"decoder_input_ids: {len(embedded)} rows, but {len(encoded)} of the encoder")
        weights = AttentionWeights()
        recorder = weights if wanted.attentions else None
        source = _layout(source_mask, wanted)
        attention: DecoderAttention
        rows: Rows | Grid
        if cache is not None:
            cached = CachedAttention(cache, embedded.shape[:2], mask, encoded, source, recorder)
            attention = cached
            rows = cached.rows
        else:
            target_mask = _mask(mask, embedded, "decoder_attention_mask")
            rows = _layout(target_mask, wanted)
            dropout = self._attention_dropout()
            if isinstance(rows, Grid) or isinstance(source, Grid):
                attention = GridAttention(source_mask, dropout, recorder, target_mask, encoded)
            else:
                # The encoder's output comes as a grid; attention takes real tokens.
                attention = FullAttention(rows, source.flat(encoded), source, dropout)
        return self._run_stack(self.decoder, embedded, rows, attention, weights, wanted)

    def _run_stack(
        self,
        stack: Encoder | Decoder,
        embedded: Tensor,
        rows: Rows | Grid,
        attention: EncoderAttention | DecoderAttention,
        weights: AttentionWeights,
        wanted: _Wanted,
    ) -> _Stacked:
        width = embedded.shape[1]
        is_encoder = stack is self.encoder
        limit = self.config.max_seq_length if is_encoder else self.config.decoder_max_seq_length
        angles = self._angles(rows, limit, "input" if is_encoder else "decoder input")
        states: list[Tensor] = []

        def record(tokens: Tensor) -> Tensor:
            """Keep a block's input as a grid; the block goes on from it, so that gradients reach it."""
            states.append(rows.grid(tokens, width))
            return rows.flat(states[-1])

        recorder = record if wanted.hidden_states else None
        hidden = rows.grid(stack(rows.flat(embedded), angles, attention, recorder), width)
        return _Stacked(hidden, (*states, hidden) if wanted.hidden_states else None, weights)

    def _angles(self, rows: Rows | Grid, position_limit: int, input_name: str) -> Tensor:
        """See `Seq2Seq`; a graph that is compiled makes the table anew, and keeps none."""
        if not torch.compiler.is_compiling():
            # A grid has what is read of rows: lengths and positions.
            return super()._angles(rows, position_limit, input_name)  # type: ignore[arg-type]
        config = self.config
        table = rotary_table(position_limit, config.kv_channels, config.rope_theta, rows.positions.device)
        return table.index_select(1, rows.positions)

    def _embed_grid(
        self, ids: Tensor | None, embeds: Tensor | None, ids_name: str, embeds_name: str
    ) -> Tensor:
        """Scaled embeddings `[batch, width, hidden]` of ids, or of embeddings as the embedding gives them."""
        if ids is None and embeds is None:
            raise ValueError(f"{ids_name}: missing; give them, or {embeds_name}")
        if ids is not None and embeds is not None:
            raise ValueError(f"{embeds_name}: given beside {ids_name}; give one of them")
        if ids is not None:
            if not torch.compiler.is_compiling():  # the check reads values, which a graph does not have
                check_vocabulary(ids, self.config.vocab_size, ids_name)
            embeds = self.shared_embedding(ids)
        assert embeds is not None
        return embeds * math.sqrt(self.config.hidden_size) if self.config.scale_embedding else embeds

    def _attention_dropout(self) -> float:
        return self.config.attention_dropout if self.training else 0.0

    def _run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor | None,
        decoder_attention_mask: Tensor | None,
        encoder_outputs: Any,
        past_key_values: EncoderDecoderCache | None,
        inputs_embeds: Tensor | None,
        decoder_inputs_embeds: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Seq2SeqModelOutput:
        """Run both stacks; the arguments are `OpenBAForConditionalGeneration.forward`'s."""
        wanted = _Wanted.of(self.config, kwargs)
        if encoder_outputs is None:
            encoder_outputs = self.encoder_output(input_ids, attention_mask, inputs_embeds, **kwargs)
        encoded: Tensor = encoder_outputs[0]
        source_mask = _mask(attention_mask, encoded, "attention_mask")
        embedded = self._embed_grid(
            decoder_input_ids, decoder_inputs_embeds, "decoder_input_ids", "decoder_inputs_embeds"
        )
        decoded = self._decode_grid(
            embedded, decoder_attention_mask, encoded, source_mask, past_key_values, wanted
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.hidden,
            past_key_values=past_key_values,
            decoder_hidden_states=decoded.states,
            decoder_attentions=tuple(decoded.weights.self_attention) or None,
            cross_attentions=tuple(decoded.weights.cross) or None,
            encoder_last_hidden_state=encoded,
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            encoder_attentions=getattr(encoder_outputs, "attentions", None),
        )

    def _cache(self, asked: bool | None, given: EncoderDecoderCache | None, is_trained: bool) -> Any:
        """Return the cache that a forward pass fills: a given one, a new one, or None."""
        # In training a cache would hold every layer's keys and values for nothing.
        wants_cache = self.config.use_cache and not self.training if asked is None else asked
        if given is not None or not wants_cache or is_trained:
            return given
        return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.initializer_range, init.normal_)


class OpenBAEncoderDecoder(OpenBAPreTrainedModel):
    """Both stacks without the head: what `AutoModel` loads."""

    _keys_to_ignore_on_load_unexpected = [
        *(OpenBAPreTrainedModel._keys_to_ignore_on_load_unexpected or []),
        r"^lm_head\.",
    ]

    def __init__(self, config: OpenBAConfig) -> None:
        super().__init__(config)
        del self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Hidden states of the decoder; see `OpenBAForConditionalGeneration.forward`."""
        cache = self._cache(use_cache, past_key_values, is_trained=False)
        output = self._run(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, cache,
            inputs_embeds, decoder_inputs_embeds, kwargs,
        )  # fmt: skip
        return _as_asked(output, self.config, kwargs)


class OpenBAForConditionalGeneration(OpenBAPreTrainedModel, GenerationMixin):
    """An OpenBA encoder-decoder with its head."""

    _tied_weights_keys = {HEAD: _EMBEDDING}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits of the decoder's next tokens, and the mean loss if there are labels.

        Padding may stand on either side and is not computed. In training with labels there are no logits:
        the loss never makes them (see `loss.py`), unless something stands in for the head or watches it.

        Args:
            input_ids: int64 `[batch, source]`.
            attention_mask: The same shape, 0 for padding; none: no padding.
            decoder_input_ids: int64 `[batch, target]`; none: the labels, shifted right.
            decoder_attention_mask: `[batch, cached + target]`, 0 for padding.
            encoder_outputs: The encoder's `last_hidden_state` `[batch, source, hidden]`, in place of
                `input_ids`.
            past_key_values: Keys and values of earlier positions.
            inputs_embeds: `[batch, source, hidden]` as `get_input_embeddings()` gives them, in place of
                `input_ids`.
            decoder_inputs_embeds: The same for the decoder.
            labels: int64 `[batch, target]`, -100 where there is no loss.
            use_cache: Return keys and values; none: not in training.
            num_items_in_batch: Divide the summed loss by this, not by this call's labels (gradient
                accumulation).
            kwargs: `return_dict=False` for a tuple; `output_hidden_states`, `output_attentions`.

        Raises:
            ValueError: no token in a row, an id outside the vocabulary, more tokens than positions.
        """
        if labels is not None and not torch.compiler.is_compiling():  # at once: shifted right, they are input
            filled = labels.masked_fill(labels == IGNORE, 0)
            check_vocabulary(filled, self.config.vocab_size, "labels")
        if decoder_input_ids is None and decoder_inputs_embeds is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        cache = self._cache(use_cache, past_key_values, is_trained=labels is not None)
        run = self._run(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, cache,
            inputs_embeds, decoder_inputs_embeds, kwargs,
        )  # fmt: skip
        hidden = run.last_hidden_state
        assert hidden is not None  # the output class allows it, no run of ours gives it
        is_fused = is_plain(self.lm_head) and not torch.compiler.is_compiling()
        needs_logits = labels is None or not self.training or not is_fused
        logits = self.logits(hidden) if needs_logits else None
        loss = None
        if labels is not None:
            loss = self._loss(hidden, None if is_fused else logits, labels, num_items_in_batch)
        fields = {name: value for name, value in run.items() if name != "last_hidden_state"}
        return _as_asked(Seq2SeqLMOutput(loss=loss, logits=logits, **fields), self.config, kwargs)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """`[..., hidden]` to fp32 `[..., vocab]`, by whatever stands as the head."""
        return linear(self.lm_head, hidden_states).float()

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels shifted right, the decoder's start token first."""
        start_id = cast(int, self.config.decoder_start_token_id)
        pad_id = cast(int, self.config.pad_token_id)
        start = labels.new_full((labels.shape[0], 1), start_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, pad_id)], 1)

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = cast(nn.Linear, new_embeddings)

    def _loss(
        self, hidden: Tensor, logits: Tensor | None, labels: Tensor, count: Tensor | int | None
    ) -> Tensor:
        """Return the mean loss of hidden states; of logits where they had to be made."""
        labelled = labels != IGNORE
        # Summed, then divided: under gradient accumulation the divisor is the whole batch's.
        if logits is None:
            head = self.lm_head
            total = linear_cross_entropy(hidden[labelled], head.weight, head.bias, labels[labelled])
        else:
            total = F.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
            )
        return total / (labelled.sum().clamp(min=1) if count is None else count)


class _EncoderOfGrids(nn.Module):
    """The encoder with transformers' arguments. Refers to the model without owning it."""

    main_input_name = "input_ids"

    def __init__(self, model: OpenBAPreTrainedModel) -> None:
        super().__init__()
        self._model = [model]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `OpenBAPreTrainedModel.encoder_output`."""
        model = self._model[0]
        output = model.encoder_output(input_ids, attention_mask, inputs_embeds, **kwargs)
        return _as_asked(output, model.config, kwargs)


def _layout(mask: Tensor, wanted: _Wanted) -> Rows | Grid:
    """Return the layout in which tokens are computed: real ones only, or the whole grid."""
    return Grid(mask) if wanted.needs_grid else Rows.ragged(mask)


def _as_asked(output: Any, config: OpenBAConfig, kwargs: dict[str, Any]) -> Any:
    """Return the output, or a tuple of it where that is asked for."""
    as_dict = kwargs.get("return_dict")
    return output if (config.return_dict if as_dict is None else as_dict) else output.to_tuple()


def _mask(mask: Tensor | None, grid: Tensor, mask_name: str) -> Tensor:
    """Return a bool mask `[batch, width]` of the tokens of a grid `[batch, width, ...]`."""
    if mask is None:
        return torch.ones(grid.shape[:2], dtype=torch.bool, device=grid.device)
    check_shape(mask, grid.shape[:2], mask_name)
    return mask.bool()


OpenBAConfig.register_for_auto_class()
OpenBAEncoderDecoder.register_for_auto_class("AutoModel")
OpenBAForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
