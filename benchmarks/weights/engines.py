"""CTranslate2 in int8 against our own decoding in fp32: tokens a second, and how far the texts are apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ctranslate2
import sacrebleu
import torch

from benchmarks.figure import Figure
from benchmarks.timing import medians
from benchmarks.weights.fixture import SHAPE, write_fixture
from openba.model.ctranslate2_files import vocabulary_of, write_ctranslate2
from openba.model.files import save_model
from openba.model.generate import generate_ids
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

WIDE = {**SHAPE, "d_model": 512, "num_heads": 8, "kv_channels": 64, "ffn": 2048, "encoder_layers": 2,
        "decoder_layers": 6}  # fmt: skip
NEW_TOKENS = 64
PROMPTS = 16
_ROUNDS = 5
_FORMS = ("float32", "int8")


class _Ours:
    """Decoding by the package."""

    def __init__(self, model: OpenBAModel, tokenizer: Tokenizer, sources: list[list[int]]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sources = sources
        self.texts: list[str] = []

    def __call__(self) -> None:
        """Decode all sources."""
        answers = generate_ids(self.model, self.tokenizer, self.sources, NEW_TOKENS)
        self.texts = [self.tokenizer.decode(ids) for ids in answers]


class _Theirs:
    """Decoding by CTranslate2."""

    def __init__(
        self, folder: Path, names: list[str], tokenizer: Tokenizer, sources: list[list[int]]
    ) -> None:
        threads = torch.get_num_threads()
        self.translator = ctranslate2.Translator(str(folder), device="cpu", intra_threads=threads)
        self.ids_of = {name: token_id for token_id, name in enumerate(names)}
        self.sources = [[names[token_id] for token_id in source] for source in sources]
        self.prefix = [[names[tokenizer.sentinel(0)]]] * len(sources)
        self.tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self) -> None:
        """Decode all sources."""
        results = self.translator.translate_batch(
            self.sources, target_prefix=self.prefix, beam_size=1, max_decoding_length=NEW_TOKENS + 1
        )
        answers = [[self.ids_of[token] for token in result.hypotheses[0]] for result in results]
        # Padding rows of the vocabulary stand for no token.
        self.texts = [self.tokenizer.decode([i for i in ids if i < self.tokenizer.size]) for ids in answers]


def figures(root: Path) -> Iterator[Figure]:
    """Decode the same prompts by both engines, 2 + 6 layers of width 512 with random weights."""
    tokenizer = write_fixture(root / "fixture")
    torch.manual_seed(0)
    model = OpenBAModel(ModelRecipe.model_validate(WIDE).architecture(tokenizer.size))
    save_model(root / "model", model.state_dict(), model.architecture, tokenizer)
    texts = (torch.randint(300, tokenizer.base, (64,)).tolist() for _ in range(PROMPTS))
    sources = [tokenizer.pieces.prompt(text) for text in texts]
    ours = _Ours(load_model(root / "model")[0], tokenizer, sources)
    names = vocabulary_of(tokenizer, model.architecture)
    theirs = {}
    for form in _FORMS:
        write_ctranslate2(root / "model", root / form, form)
        theirs[form] = _Theirs(root / form, names, tokenizer, sources)
    seconds = medians({"ours": ours, **theirs}, _ROUNDS)
    tokens = PROMPTS * NEW_TOKENS
    for form in _FORMS:
        equal = sum(a == b for a, b in zip(ours.texts, theirs[form].texts, strict=True))
        comparison = f"ours in fp32 {tokens / seconds['ours']:.0f} tok/s; {equal} of {PROMPTS} texts equal"
        ratio = seconds["ours"] / seconds[form]
        yield Figure(
            f"weights/ctranslate2_{form}", tokens / seconds[form], "tok/s", None, "higher", comparison, ratio
        )
        closeness = sacrebleu.corpus_chrf(theirs[form].texts, [ours.texts]).score
        yield Figure(
            f"weights/ctranslate2_{form}_chrf", closeness, "", peer="against our texts, random weights"
        )
