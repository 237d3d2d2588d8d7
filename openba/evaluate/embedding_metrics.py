"""Scores that compare texts by a further model: MAUVE and SIM of the paper's Table 10.

Owns which of the model's outputs are compared. The model is a folder that the benchmark names; where it is
not, or where MAUVE's own library is not installed, the metric is not run and says why. mauve-text is under
the GPL and no dependency of this package: it is imported when it is asked for, as lm-eval is.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from openba.evaluate.answers import Answers, NotRunError, Scores

_BATCH = 32
_TOKENS = 256
"""Of a text, at most; both sets are of sentences."""


def mauve(answers: Answers) -> Scores:
    """How near the answers, as a whole, are to the right ones (Pillutla et al. 2021), 0 to 100.

    Raises:
        NotRunError: there is no model, or the library is not installed.
    """
    folder = _folder(answers, "mauve")
    try:
        from mauve import compute_mauve
    except ImportError:
        raise NotRunError("mauve-text is not installed; pip install mauve-text (GPL-3.0)") from None
    found = compute_mauve(
        p_text=[text or " " for text in answers.first],
        q_text=[text or " " for text in answers.predictions],
        featurize_model_name=str(folder),
        max_text_length=_TOKENS,
        verbose=False,
    )
    return {"mauve": 100 * float(found.mauve), "mauve_model": folder.name}


def similarity(answers: Answers) -> list[float]:
    """Cosine of each answer and its prompt, mean pooled over tokens, -1 to 1.

    Raises:
        NotRunError: there is no model.
    """
    model, tokenizer = _encoder(_folder(answers, "sim"))
    texts, prompts = (_embedded(model, tokenizer, side) for side in (answers.predictions, answers.prompts))
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
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.inference_mode()
def _embedded(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """`[texts, width]`: the last layer's mean over a text's tokens."""
    rows = []
    for begin in range(0, len(texts), _BATCH):
        chosen = [text or " " for text in texts[begin : begin + _BATCH]]
        given = tokenizer(chosen, padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt")
        mask = given["attention_mask"].unsqueeze(-1).float()
        states = model(**given).last_hidden_state
        rows.append((states * mask).sum(1) / mask.sum(1).clamp(min=1))
    return torch.cat(rows)
