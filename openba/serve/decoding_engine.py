"""Continuous batching: one thread decodes all requests, adding and removing rows between steps.

Owns the rows. A row whose logits are not finite fails alone. After an error that cannot be attributed to a
row, the engine runs a self-test on a source of one token; if that fails too, the thread ends, all requests
get an error, and `state` reports it. Queue and thread are in `engine.py`, the choice of tokens in
`sampling.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openba.errors import one_line
from openba.model.adapter_bank import AdapterBank
from openba.model.generate import start_tokens
from openba.model.seq2seq import Seq2Seq
from openba.serve.engine import (
    NOT_FINITE,
    Engine,
    EngineFailedError,
    EngineSettings,
    Generation,
)
from openba.serve.row_cache import RowCache
from openba.serve.sampling import choose_tokens, token_logprobs


class DecodingEngine(Engine):
    """Continuous batching over one model."""

    def __init__(self, model: Seq2Seq, settings: EngineSettings, bank: AdapterBank | None = None) -> None:
        """Run the self-test and start the thread.

        Args:
            model: in evaluation mode.
            settings: see `Engine`.
            bank: adapters in the model's layers; None: there are none.

        Raises:
            EngineFailedError: the model gives no finite logits.
        """
        self.model = model
        # Before the base class starts the thread, which decodes into it.
        self.row_cache = RowCache(model, settings.max_rows, start_tokens(settings.tokenizer), bank)
        super().__init__(model.architecture, settings)

    def _prepare(self, generation: Generation) -> None:
        device = self.row_cache.self_attention.device
        generation.random_generator = generation.sampling.random_generator(device)

    def _decode_admitted(self, changed: dict[Generation, None]) -> None:
        self._add_rows(list(self._admitted), changed)
        self._decode_step(changed)

    def _add_rows(self, admitted: list[Generation], changed: dict[Generation, None]) -> None:
        """Encode the sources in one batch; if that fails, one by one, so that only the faulty one fails."""
        for generation in [generation for generation in admitted if generation.is_cancelled]:
            admitted.remove(generation)
            self._finish(generation, "cancelled", changed)
        if not admitted:
            return
        try:
            logits = self.row_cache.add_rows(
                [generation.source_ids for generation in admitted],
                [generation.adapter for generation in admitted],
            )
        except Exception as error:
            if len(admitted) == 1:
                self._fail(admitted[0], one_line(error), changed)
                self._self_test(one_line(error))
                return
            for generation in admitted:
                self._add_rows([generation], changed)
            return
        self.active += admitted
        self._append_tokens(range(len(self.active) - len(admitted), len(self.active)), logits, changed)

    def _decode_step(self, changed: dict[Generation, None]) -> None:
        """Free cancelled rows and decode one token for each other row."""
        # From the last row down: freeing a row moves the last one, which has been looked at, into it.
        for row in reversed(range(len(self.active))):
            if self.active[row].is_cancelled:
                self._finish(self._remove_row(row), "cancelled", changed)
        if not self.active:
            return
        try:
            logits = self.row_cache.decode_step([generation.output_ids[-1] for generation in self.active])
        except Exception as error:  # such as a device out of memory
            reason = one_line(error)
            while self.active:
                failed = self._remove_row(len(self.active) - 1, clear=True)
                self._fail(failed, reason, changed)
            self._self_test(reason)
            return
        self.steps += 1
        self._append_tokens(range(len(self.active)), logits, changed)

    def _append_tokens(self, rows: range, logits: Tensor, changed: dict[Generation, None]) -> None:
        """Append the next token to each of these rows; free the rows that are finished."""
        generations = [self.active[row] for row in rows]
        logits = logits[:, : self.vocabulary_size]
        # Copied first: `choose_tokens` adds biases in place, and log-probabilities are reported without.
        unbiased_logits = {
            index: logits[index].clone()
            for index, generation in enumerate(generations)
            if generation.sampling.top_logprobs is not None
        }
        samplings = [generation.sampling for generation in generations]
        random_generators = [generation.random_generator for generation in generations]
        tokens = choose_tokens(logits, samplings, random_generators)
        self.tokens += len(tokens)
        for index in reversed(range(len(generations))):
            generation = generations[index]
            token = tokens[index]
            if token is None:
                # Its cache may hold NaN, which would reach the next row in this slot as 0 * NaN = NaN.
                self._remove_row(rows[index], clear=True)
                reason = f"{NOT_FINITE} after {len(generation.output_ids)} tokens"
                self._fail(generation, reason, changed)
                continue
            if token != self.eos_id:
                generation.output_ids.append(token)
                if index in unbiased_logits:
                    top_count = generation.sampling.top_logprobs or 0
                    generation.logprobs.append(token_logprobs(unbiased_logits[index], token, top_count))
            if token == self.eos_id or len(generation.output_ids) >= generation.max_new_tokens:
                self._remove_row(rows[index])
                self._finish(generation, "stop" if token == self.eos_id else "length", changed)
            elif generation.notify_each_step:
                changed[generation] = None
        if None in tokens and not self.active:
            self._self_test(NOT_FINITE)

    def _self_test(self, reason: str) -> None:
        if len(self.row_cache) == self.row_cache.max_rows:
            return
        try:
            logits = self.row_cache.add_rows([[self.eos_id]])
            test_row = len(self.row_cache) - 1
            # A decoder step would also advance the rows of requests, so it is tested only without any.
            if len(self.row_cache) == 1:
                logits = torch.cat([logits, self.row_cache.decode_step([self.eos_id])])
            self.row_cache.remove_row(test_row, clear=True)
        except Exception as error:
            raise EngineFailedError(f"{reason}; then {one_line(error)}") from error
        if not bool(torch.isfinite(logits[:, : self.vocabulary_size].max(-1).values).all()):
            raise EngineFailedError(f"{reason}; then {NOT_FINITE} for a source of one token")

    def _remove_row(self, row: int, clear: bool = False) -> Generation:
        """Free a row, as `RowCache.remove_row` does, and return its generation."""
        removed = self.active[row]
        last_row = self.row_cache.remove_row(row, clear=clear)
        self.active[row] = self.active[last_row]
        self.active.pop()
        return removed
