"""Decoding by CTranslate2: batches that begin and end together, in fp32 or int8.

Owns the talk with its `Translator`. A batch takes generations with the same sampling; a request that comes
while one is decoded waits for its end. A row ends at its own length or cancellation, and each step's tokens
are reported at once. CTranslate2 has no random numbers of a row's own, no biases of single tokens and no
log-probabilities before temperature: requests for them are refused by name.
"""

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import torch

from openba.errors import UserError, one_line
from openba.model.ctranslate2_files import vocabulary_of, write_ctranslate2
from openba.model.generate import start_tokens
from openba.recipes.architecture import Architecture
from openba.serve.engine import Engine, EngineFailedError, EngineSettings, Generation
from openba.serve.sampling import LOWEST_TEMPERATURE, Sampling

_INSTEAD = "leave it out, or serve with --engine openba"


def load_translator(
    folder: Path, quantization: str, device: str
) -> tuple[ctranslate2.Translator, Architecture]:
    """Convert a model's folder and load it; returns the model's shape too.

    The converted files are deleted when they are loaded.

    Raises:
        UserError: see `write_ctranslate2`; CTranslate2 does not have the device.
    """
    name, _, index = device.partition(":")
    with tempfile.TemporaryDirectory(prefix="openba-ctranslate2-") as scratch_folder:
        converted = Path(scratch_folder) / "model"
        architecture = write_ctranslate2(folder, converted, quantization)
        # It reads all weights into memory, so that the folder may go.
        try:
            translator = ctranslate2.Translator(
                str(converted), device=name, device_index=int(index or 0), compute_type=quantization,
                intra_threads=torch.get_num_threads(),
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--device {device}: CTranslate2 cannot use it: {one_line(error)}") from None
        return translator, architecture


class CTranslate2Engine(Engine):
    """Static batching over a CTranslate2 model."""

    def __init__(self, folder: Path, settings: EngineSettings, *, quantization: str, device: str) -> None:
        """Convert and load the model, run the self-test and start the thread.

        Args:
            folder: of the model, in any form that `load_model` reads.
            settings: see `Engine`.
            quantization: of the converted weights, as `openba export` takes it.
            device: as torch names it.

        Raises:
            UserError: see `load_translator`.
            EngineFailedError: the self-test fails.
        """
        self.translator, architecture = load_translator(folder, quantization, device)
        self.names = vocabulary_of(settings.tokenizer, architecture)
        # The first start token is the model's own, see `make_specification`.
        self.prefix = [self.names[token_id] for token_id in start_tokens(settings.tokenizer)[1:]]
        super().__init__(architecture, settings)

    def _prepare(self, generation: Generation) -> None:
        # Refused and not ignored: each of these would change the answer.
        sampling = generation.sampling
        if sampling.logit_bias:
            raise UserError(f"logit_bias: the engine ctranslate2 has none; {_INSTEAD}")
        if sampling.top_logprobs is not None:
            raise UserError(f"logprobs: the engine ctranslate2 does not report them; {_INSTEAD}")
        if sampling.seed is not None and not _is_greedy(sampling):
            raise UserError(f"seed: the engine ctranslate2 cannot repeat an answer by a seed; {_INSTEAD}")

    def _may_join(self, generation: Generation, others: list[Generation]) -> bool:
        return _options(generation.sampling) == _options(others[0].sampling)

    def _decode_admitted(self, changed: dict[Generation, None]) -> None:
        for generation in self._admitted:
            if generation.is_cancelled:
                self._finish(generation, "cancelled", changed)
        batch = [generation for generation in self._admitted if generation.finish_reason is None]
        if not batch:
            return
        self.active = batch
        try:
            self._translate(batch)
        except Exception as error:  # such as a device out of memory
            for generation in batch:
                self._fail(generation, one_line(error), changed)
            self.active = []
            self._self_test(one_line(error))
            return
        self.active = []
        for generation in batch:
            if generation.finish_reason is None:
                self._finish(generation, "cancelled" if generation.is_cancelled else "stop", changed)
            changed[generation] = None

    def _translate(self, batch: list[Generation]) -> None:
        """Decode a batch to its end; tokens are appended, and lengths reached are noted, as they come."""
        progress = _Progress(self, batch)
        sources = [generation.source_ids for generation in batch]
        longest = max(generation.max_new_tokens for generation in batch)
        self._run_translator(sources, longest, batch[0].sampling, progress)
        self.notify(list(progress.stepped))

    def begin_step(self) -> None:
        """Count a step and note when it began; called in a thread of the translator's."""
        self._step_began = time.monotonic()
        self.steps += 1

    def _run_translator(
        self,
        sources: list[list[int]],
        max_new_tokens: int,
        sampling: Sampling,
        callback: Callable[[ctranslate2.GenerationStepResult], bool] | None = None,
    ) -> None:
        # Rows that pad the vocabulary to a multiple stand for no token; sampling must not draw them.
        padding_names = self.names[self.vocabulary_size :]
        # Sources are not cut here: those that are too long were refused when they were submitted.
        self.translator.translate_batch(
            [[self.names[token_id] for token_id in source] for source in sources],
            target_prefix=[self.prefix] * len(sources),
            beam_size=1, max_input_length=0, max_decoding_length=max_new_tokens + len(self.prefix),
            suppress_sequences=[[name] for name in padding_names] or None,
            callback=callback, **_options(sampling),
        )  # fmt: skip

    def _self_test(self, reason: str) -> None:
        try:
            self._run_translator([[self.eos_id]], 1, Sampling())
        except Exception as error:
            raise EngineFailedError(f"{reason}; then {one_line(error)}") from error


class _Progress:
    """Takes each token of a batch as it comes.

    Called in a thread of the translator's, which lets go of it last: the engine, which owns the translator,
    is referred to weakly, or that thread would have to wait for its own end.
    """

    def __init__(self, engine: CTranslate2Engine, batch: list[Generation]) -> None:
        self.engine = weakref.proxy(engine)
        self.batch = batch
        self.stepped: dict[Generation, None] = {}
        """Generations to wake at the next step."""
        self.last_step = 0

    def __call__(self, result: ctranslate2.GenerationStepResult) -> bool:
        """Append one token; returns whether its row is to end."""
        if result.step != self.last_step:
            self.last_step = result.step
            self.engine.begin_step()
            self.engine.notify(list(self.stepped))
            self.stepped.clear()
        generation = self.batch[result.batch_id]
        if generation.is_cancelled:
            return True
        if result.step < len(self.engine.prefix):
            return False
        self.engine.tokens += 1
        if result.token_id == self.engine.eos_id:
            return True
        generation.output_ids.append(result.token_id)
        # Each row has its own limit; the translator knows only the longest of the batch.
        is_full = len(generation.output_ids) >= generation.max_new_tokens
        if is_full:
            generation.finish_reason = "length"
        if is_full or generation.notify_each_step:
            self.stepped[generation] = None
        return is_full


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature < LOWEST_TEMPERATURE or sampling.top_p <= 0


def _options(sampling: Sampling) -> dict[str, float]:
    """Return the translator's options; generations of a batch have the same."""
    if _is_greedy(sampling):
        return {"sampling_topk": 1}
    return {
        "sampling_topk": 0, "sampling_topp": sampling.top_p, "sampling_temperature": sampling.temperature,
    }  # fmt: skip
