"""Figures of text cleaning for the group `quality`: meaning kept, privacy fixed point, speed.

Speed is the CPU time of the step over real text against commit 35059da, which is unpacked into a temporary
folder (`git archive 35059da | tar -x -C FOLDER`) and run by its own process, turn by turn with ours. Where
the repository does not have that commit, the figure is left out and that is said.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sentencepiece import SentencePieceNormalizer, SentencePieceProcessor

from benchmarks import corpora
from benchmarks.data import cleaning
from benchmarks.data.planted import planted_document
from benchmarks.figure import ROOT, Figure
from openba.data.clean import edit_matrix, text_arrays
from openba.data.clean.privacy import Privacy
from openba.data.schema import DOCUMENTS

BEFORE = "35059da"
DOCUMENTS_PLANTED = 200_000
_ROUNDS = 7
_MEANING = ROOT / "tests" / "data" / "clean_meaning.jsonl"
_MT5 = corpora.SHARED / "tokenizer_mt5" / "spiece.model"


def figures() -> Iterator[Figure]:
    """Yield the share of texts right, what a second privacy pass removes, and the speed against before."""
    yield _meaning()
    yield from _fixed_point()
    yield from _speed()


def _cleaned(folder: Path, texts: list[str]) -> dict[int, str]:
    """Return number -> text of what the shipped filters leave of texts."""
    corpora.write(folder / "text" / DOCUMENTS, tuple(("zh", text) for text in texts))
    cleaning.clean(folder / "text", cleaning.paper(), folder / "out")
    paths = sorted((folder / "out").glob("text*.parquet"))
    return {
        int(row["id"]): row["text"]
        for path in paths
        for row in pq.read_table(path, columns=["id", "text"]).to_pylist()
    }


def _meaning() -> Figure:
    cases = [json.loads(line) for line in _MEANING.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory(prefix="openba-meaning-") as folder:
        cleaned_texts = _cleaned(Path(folder), [case["text"] for case in cases])
    wrong = [
        case["id"] for number, case in enumerate(cases) if cleaned_texts.get(number, "") != case["right"]
    ]
    if wrong:
        print(f"benchmarks: quality: not as written down: {', '.join(wrong)}", file=sys.stderr)
    share = 100 * (1 - len(wrong) / len(cases))
    return Figure("quality/meaning_kept", share, "%", 100, "higher", f"{len(cases)} texts")


def _fixed_point() -> Iterator[Figure]:
    generator = random.Random(5)
    texts = [planted_document(generator) for _ in range(DOCUMENTS_PLANTED)]
    with tempfile.TemporaryDirectory(prefix="openba-private-") as folder:
        cleaned_texts = [*_cleaned(Path(folder), texts).values()]
    comparison = f"{len(cleaned_texts)} of {len(texts)} planted documents stay"
    figure_name = "quality/private_removed_by_a_second_pass"
    yield Figure(figure_name, _removals(cleaned_texts), "spans", 0, peer=comparison)
    for tokenizer, decode in _decoders():
        decoded = [decode(text) for text in cleaned_texts]
        yield Figure(f"quality/private_in_text_decoded_by_{tokenizer}", _removals(decoded), "spans", 0)


def _decoders() -> Iterator[tuple[str, Callable[[str], str]]]:
    """Yield what each tokenizer makes of a text; a unigram model of ours keeps it but for U+2581."""
    normalizer = SentencePieceNormalizer(
        rule_name="nmt_nfkc", remove_extra_whitespaces=True, escape_whitespaces=False
    )
    yield "nmt_nfkc", normalizer.normalize
    yield "ours", lambda text: text.replace("\u2581", " ")
    if _MT5.exists():
        model = SentencePieceProcessor(model_file=str(_MT5))
        yield "mt5", lambda text: model.decode(model.encode(text))
    else:
        print(
            "benchmarks: quality: no ../shared/data/tokenizer_mt5; mT5's decoding is left out",
            file=sys.stderr,
        )


def _removals(texts: list[str]) -> int:
    edits = Privacy().find(text_arrays.decode(pa.array(texts, pa.large_string()))[0])
    for text_number in np.unique(edits[:, edit_matrix.ROW])[:3].tolist():
        print(f"benchmarks: quality: private in {texts[text_number]!r}", file=sys.stderr)
    return len(edits)


def _speed() -> Iterator[Figure]:
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True, check=False)
    if archive.returncode:
        print(f"benchmarks: quality: no commit {BEFORE} here; speed against it is left out", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="openba-before-") as name:
        folder = Path(name)
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as archive_file:
            archive_file.extractall(folder / "tree", filter="data")
        corpus_megabytes = corpora.write(folder / "text" / DOCUMENTS, corpora.prose()[::2]) / 1e6
        trees = {
            "before": (folder / "tree", "benchmarks.cleaning"),
            "now": (ROOT, "benchmarks.data.cleaning"),
        }
        seconds = _turn_by_turn(trees, folder / "text")
    ratio = seconds["before"] / seconds["now"]
    comparison = f"{BEFORE}: {corpus_megabytes / seconds['before']:.1f} MB/s"
    yield Figure("quality/cleaning_speed_against_before", ratio, "x", 0.9, "higher", comparison, ratio)


def _turn_by_turn(trees: dict[str, tuple[Path, str]], source: Path) -> dict[str, float]:
    """Return the median CPU seconds in each tree; a first turn loads compiled loops and does not count.

    Args:
        trees: name -> folder of a checkout, and the module there that cleans.
        source: folder with documents.parquet.
    """
    script = ROOT / "benchmarks" / "data" / "peer_cleaning.py"
    run_seconds: dict[str, list[float]] = {name: [] for name in trees}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-P", str(script), module, str(source)],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for name, (tree, module) in trees.items()
    }
    try:
        for _ in range(_ROUNDS + 1):
            for name, process in processes.items():
                assert process.stdin
                assert process.stdout
                process.stdin.write("run\n")
                process.stdin.flush()
                run_seconds[name].append(float(process.stdout.readline()))
    finally:
        for process in processes.values():
            process.communicate()
    return {name: statistics.median(seconds[1:]) for name, seconds in run_seconds.items()}
