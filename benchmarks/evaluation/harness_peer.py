"""Log-likelihoods of the same pairs by our scorer and by lm-evaluation-harness's own seq2seq backend.

Usage: `python -m benchmarks.evaluation.harness_peer MODEL PAIRS.json OUT.json`, in an environment with
lm-eval. The peer's class is used as it is, but for its tokenizer call: it knows neither the release's wrapper
of prompts nor the sentinel before answers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import torch
from lm_eval.models.huggingface import HFLM

from openba.data.instruct import encode_input
from openba.evaluate.harness import Scorer

BATCH_SIZE = 16
_PARTS = 4
"""Turns that the two take."""


def main(model_folder: Path, pairs_file: Path, out: Path) -> None:
    """Score all pairs by both, in turns; write times and log-likelihoods."""
    torch.set_num_threads(1)
    pairs = [tuple(pair) for pair in json.loads(pairs_file.read_text(encoding="utf-8"))]
    scorer = Scorer(str(model_folder))
    peer = _make_peer(model_folder, scorer)
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    # Warm-up: our kernels are compiled at their first use and then cached beside the code.
    scorer.loglikelihood(pairs[:4])
    peer.loglikelihood(requests[:4], disable_tqdm=True)
    seconds = {"ours": 0.0, "peer": 0.0}
    scores: dict[str, list[float]] = {"ours": [], "peer": []}
    part_size = -(-len(pairs) // _PARTS)
    for begin in range(0, len(pairs), part_size):
        part = slice(begin, begin + part_size)
        runs: dict[str, Callable[[], Iterable[tuple[float, bool]]]] = {
            "ours": lambda: scorer.loglikelihood(pairs[part]),  # noqa: B023 - called at once
            "peer": lambda: peer.loglikelihood(requests[part], disable_tqdm=True),  # noqa: B023
        }
        for name, run in runs.items():
            started = time.process_time()
            scores[name] += [float(log_likelihood) for log_likelihood, _ in run()]
            seconds[name] += time.process_time() - started
    out.write_text(json.dumps({"seconds": seconds, "scores": scores}), encoding="utf-8")


def _make_peer(model_folder: Path, scorer: Scorer) -> HFLM:
    class Peer(HFLM):
        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **options: object
        ) -> list[int]:
            del options
            # lm-eval encodes answers without special tokens, prompts with them.
            if add_special_tokens is False:
                return [scorer.tokenizer.sentinel(0), *scorer.tokenizer.encode(string)]
            return encode_input(scorer.tokenizer, string, (), scorer.max_length)

    return Peer(
        pretrained=str(model_folder),
        backend="seq2seq",
        trust_remote_code=True,
        batch_size=BATCH_SIZE,
        device="cpu",
        dtype="float32",
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
