"""A tiny random model in the released layout: `python -m benchmarks.weights.fixture FOLDER`.

For trying what starts from weights where there are none. Owns the folder's content: fp16 weights with an own
copy of the head, config with the released keys, and a tokenizer of Python's own text.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import sentencepiece as spm
import torch

from openba.model.files import write_released
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.tokenizer.pieces_openba import MODEL_FILE
from openba.tokenizer.tokenizer import Tokenizer

SHAPE = {
    "d_model": 64, "num_heads": 4, "kv_channels": 16, "ffn": 192, "encoder_layers": 1, "decoder_layers": 2,
    "norm": "layernorm", "sandwich": False, "attention_bias": True, "head_bias": True,
    "scale_embedding": False,
}  # fmt: skip
PIECES = 900


def write_fixture(folder: Path, seed: int = 0) -> Tokenizer:
    """Write the folder; the same seed gives the same bytes. Returns its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model_bytes = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=_lines(), model_writer=model_bytes, vocab_size=PIECES, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / MODEL_FILE).write_bytes(model_bytes.getvalue())
    tokenizer = Tokenizer(folder / MODEL_FILE)
    torch.manual_seed(seed)
    model = OpenBAModel(ModelRecipe.model_validate(SHAPE).architecture(tokenizer.size))
    write_released(folder, model.state_dict(), model.architecture)
    return tokenizer


def _lines() -> Iterator[str]:
    for name in sorted(topics)[:20]:
        yield from topics[name].splitlines()


if __name__ == "__main__":
    write_fixture(Path(sys.argv[1]))
