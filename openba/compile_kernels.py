"""Compile the numba kernels once, into numba's cache, as the last step of an installation.

The first process that cleans, mixes, denoises or decodes would compile them otherwise, and so would each of
its neighbours at the same time: 75 s of CPU. Run as `python -m openba.compile_kernels`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import mixture, tokenizer_training
from openba.data.clean import corpus, passes
from openba.data.clean.text_arrays import find_blank
from openba.data.denoise import Denoising
from openba.data.matching import PairIndex, Units, find
from openba.data.schema import DOCUMENTS, SCHEMA, write_documents
from openba.model.generate import generate_ids
from openba.model.model import OpenBAModel
from openba.recipes.architecture import Architecture
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe, MixtureRecipe, TokenizerRecipe
from openba.recipes.train import DenoiserRecipe, UL2Recipe
from openba.tokenizer.tokenizer import Tokenizer

_TEXTS = (
    "今天天气非常好，我们一起去公园散步吧。请拨打 13812345678，或者写信到 name@example.com 联系张老师。",
    "The council met on Monday to discuss the new library. It cost £3.2m, see www.example.com for more.",
    "def area(width, height):\n    return width * height\n\n\n<p>一个段落</p>\n1. 第一项\n2. 第二项",
    *(module.__doc__ or "" for module in (argparse, heapq, json)),
)
"""All filters of the paper's recipe read these; what they remove does not matter."""
_COPIES = 40
_PIECES = 450
_WINDOW = 64


def compile_kernels() -> None:
    """Call every kernel once, through the steps that use it, on a few short texts."""
    with tempfile.TemporaryDirectory(prefix="openba-kernels-") as folder:
        root = Path(folder)
        _clean(root)
        tokenizer = _tokenize_and_mix(root)
    _denoise(tokenizer)
    _match()
    _decode(tokenizer)


def _clean(root: Path) -> None:
    source_folder = root / "source"
    source_folder.mkdir()
    rows = [
        {
            "id": f"{copy}-{number}",
            "text": f"{copy} {text}\n{text}",
            "language": "zh",
            "source": "source",
            "extra": "{}",
        }
        for copy in range(_COPIES)
        for number, text in enumerate(_TEXTS)
    ]
    write_documents(source_folder / DOCUMENTS, [pa.RecordBatch.from_pylist(rows, SCHEMA)], 0)
    recipe = load(CONFIGS / "clean" / "paper.yaml", CleanRecipe, ["near_dedup=true"])
    (root / "corpus").mkdir()
    build = Build(root / "corpus", CorpusRecipe(sources={"source": recipe}), {"source": source_folder})
    corpus.build(build, passes.in_this_process)
    find_blank(pa.array([" "], pa.large_string()))


def _tokenize_and_mix(root: Path) -> Tokenizer:
    folders = {name: root / name for name in ("corpus", "tokenizer", "mixture")}
    for name in ("tokenizer", "mixture"):
        folders[name].mkdir()
    recipe = TokenizerRecipe(kind="unigram", vocab_size=_PIECES)
    tokenizer_training.build(Build(folders["tokenizer"], recipe, {"corpus": folders["corpus"]}))
    mixture_recipe = MixtureRecipe(shares={"zh": 1.0}, parts={"stage1": 20}, heldout=20)
    mixture.build(Build(folders["mixture"], mixture_recipe, folders), passes.in_this_process)
    return Tokenizer.load(folders["tokenizer"])


def _denoise(tokenizer: Tokenizer) -> None:
    recipe = UL2Recipe(objective="ul2", length=_WINDOW, denoisers=(DenoiserRecipe(mode="S", ratio=0.25),))
    denoising = Denoising(recipe, tokenizer, ignore=-100)
    windows = np.full((1, _WINDOW), tokenizer.eos, np.int32)
    denoising.batch(windows, np.zeros(1, np.int64), seed=0)
    denoising.lengths(np.zeros(1, np.int64), seed=0)


def _match() -> None:
    units = Units.of(pa.array(_TEXTS, pa.large_string()))
    grams, _ = units.ngrams(2)
    find(grams, np.unique(grams))
    PairIndex([units.row(0)], [units.row(1)], [1]).find(units)


def _decode(tokenizer: Tokenizer) -> None:
    architecture = Architecture(
        vocab_size=tokenizer.size,
        hidden_size=32,
        kv_channels=16,
        num_heads=2,
        ffn_hidden_size=32,
        ffn_multiple=32,
        num_layers=1,
        num_decoder_layers=1,
        norm="rmsnorm",
        sandwich_norm=True,
    )
    with torch.inference_mode():
        generate_ids(OpenBAModel(architecture).eval(), tokenizer, [[tokenizer.eos]], max_new_tokens=2)


if __name__ == "__main__":
    compile_kernels()
