"""Scores that compare texts by a further model: MAUVE and SIM of the paper's Table 10.

Owns which of the model's outputs are compared. The model is a folder that the benchmark names; where it is
not, or where MAUVE's own library is not installed, the metric is not run and says why. mauve-text is under
the GPL and no dependency of this package: it is imported when it is asked for, as lm-eval is.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from openba.evaluate.answers import Answers, CorpusScore, NotRunError

_BATCH = 32
_TOKENS = 256
"""Of a text, at most; both sets are of sentences."""


def mauve(answers: Answers) -> CorpusScore:
    """How near the answers, as a whole, are to the right ones (Pillutla et al. 2021), 0 to 100.

    Raises:
        NotRunError: there is no model, or the library is not installed.
    """
    folder = _folder(answers, "mauve")
    try:
        from mauve import compute_mauve
    except ImportError:
        raise NotRunError("mauve-text is not installed; pip install mauve-text (GPL-3.0)") from None
    model, tokenizer = _encoder(folder)
    right, given = (_embedded(model, tokenizer, side, True) for side in (answers.first, answers.predictions))

    def of(rows: np.ndarray) -> float:
        features = {"p_features": right.numpy()[rows], "q_features": given.numpy()[rows]}
        return 100 * float(compute_mauve(**features, verbose=False).mauve)

    return CorpusScore(of, resamples=0, beside={"mauve_model": folder.name})


def similarity(answers: Answers) -> list[float]:
    """Cosine of each answer and its prompt, mean pooled over tokens, -1 to 1.

    Raises:
        NotRunError: there is no model.
    """
    model, tokenizer = _encoder(_folder(answers, "sim"))
    texts, prompts = (
        _embedded(model, tokenizer, side, False) for side in (answers.predictions, answers.prompts)
    )
    return F.cosine_similarity(texts, prompts).tolist()


def _folder(answers: Answers, metric: str) -> Path:
    folder = Path(answers.models[metric])
    if not (folder / "config.json").is_file():
        raise NotRunError(f"{folder}: no model of transformers' form there; put one there or name another")
    return folder


@lru_cache(maxsize=1)
def _encoder(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
    if tokenizer.pad_token is None:  # GPT-2 has none
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@torch.inference_mode()
def _embedded(model: Any, tokenizer: Any, texts: list[str], last: bool) -> torch.Tensor:
    """`[texts, width]` of the last layer: the last token's state, as MAUVE has it, or the mean over tokens.

    Of an empty text zeros, which are like nothing.
    """
    found = torch.zeros(len(texts), model.config.hidden_size)
    told = [i for i, text in enumerate(texts) if text.strip()]
    for begin in range(0, len(told), _BATCH):
        chosen = told[begin : begin + _BATCH]
        given = tokenizer(
            [texts[i] for i in chosen],
            padding=True,
            truncation=True,
            max_length=_TOKENS,
            return_tensors="pt",
        )
        mask = given["attention_mask"].unsqueeze(-1).float()
        states = model(**given).last_hidden_state
        if last:
            ends = mask.squeeze(-1).sum(1).long() - 1
            found[chosen] = states[torch.arange(len(chosen)), ends]
        else:
            found[chosen] = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    return found
