"""Scores that compare texts by a further model: MAUVE and SIM of the paper's Table 10.

Owns which outputs of that model are compared. The model is a folder named by the benchmark; where it is
missing, or MAUVE's library is not installed, the metric is not run and the result says why. mauve-text is
under the GPL and no dependency of this package: it is imported when the metric is used, as lm-eval is.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from openba.evaluate.answers import Answers, CorpusScore, NotRunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 32
_MAX_TOKENS = 256
"""Length limit of a text; those of Table 10 are sentences."""


def mauve(answers: Answers) -> CorpusScore:
    """MAUVE between the answers and the references as two sets (Pillutla et al. 2021), 0 to 100.

    Raises:
        NotRunError: the model is missing, or the library is not installed.
    """
    folder = _model_folder(answers, "mauve")
    try:
        from mauve import compute_mauve
    except ImportError:
        raise NotRunError("mauve-text is not installed; pip install mauve-text (GPL-3.0)") from None
    model, tokenizer = _load_encoder(folder)
    reference_features = _embed(model, tokenizer, answers.first_references, pool_last=True)
    answer_features = _embed(model, tokenizer, answers.predictions, pool_last=True)

    def mauve_of_rows(rows: np.ndarray) -> float:
        result = compute_mauve(
            p_features=reference_features.numpy()[rows],
            q_features=answer_features.numpy()[rows],
            verbose=False,
        )
        return 100 * float(result.mauve)

    # No bootstrap: MAUVE would cluster all texts anew for each resample.
    return CorpusScore(mauve_of_rows, resamples=0, extra_scores={"mauve_model": folder.name})


def similarity(answers: Answers) -> list[float]:
    """Cosine of each answer and its prompt, mean pooled over tokens, -1 to 1.

    Raises:
        NotRunError: the model is missing.
    """
    model, tokenizer = _load_encoder(_model_folder(answers, "sim"))
    answer_features = _embed(model, tokenizer, answers.predictions, pool_last=False)
    prompt_features = _embed(model, tokenizer, answers.prompts, pool_last=False)
    return F.cosine_similarity(answer_features, prompt_features).tolist()


def _model_folder(answers: Answers, metric: str) -> Path:
    folder = Path(answers.model_folders[metric])
    if not (folder / "config.json").is_file():
        raise NotRunError(f"{folder}: no model of transformers' form there; put one there or name another")
    return folder


@lru_cache(maxsize=1)
def _load_encoder(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    # Imported late: every command that scores imports this module, and few use these metrics.
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
    if tokenizer.pad_token is None:  # GPT-2 has none
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@torch.inference_mode()
def _embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, pool_last: bool
) -> torch.Tensor:
    """Return `[texts, width]` of the last layer; zeros for an empty text, which are similar to nothing.

    Args:
        model: in evaluation mode.
        tokenizer: the model's; pads on the right.
        texts: any number.
        pool_last: take the last token's state, as MAUVE does; else the mean over tokens.
    """
    embeddings = torch.zeros(len(texts), model.config.hidden_size)
    rows_with_text = [row for row, text in enumerate(texts) if text.strip()]
    for batch_start in range(0, len(rows_with_text), _BATCH_SIZE):
        batch_rows = rows_with_text[batch_start : batch_start + _BATCH_SIZE]
        encoded = tokenizer(
            [texts[row] for row in batch_rows],
            padding=True,
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        )
        mask = encoded["attention_mask"].unsqueeze(-1).float()
        states = model(**encoded).last_hidden_state
        if pool_last:
            # The tokenizer pads on the right, so the last real token is at the length minus one.
            last_positions = mask.squeeze(-1).sum(1).long() - 1
            embeddings[batch_rows] = states[torch.arange(len(batch_rows)), last_positions]
        else:
            embeddings[batch_rows] = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    return embeddings
