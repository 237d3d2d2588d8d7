"""Ours and lm-evaluation-harness's own seq2seq backend on the same pairs: a program for its environment.

`python -m benchmarks.evaluation.harness_peer MODEL PAIRS.json OUT.json`. The peer's class is used as it is,
but for its tokenizer call: it knows neither the release's wrapper of prompts nor the sentinel before answers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from openba.data.instruct import encode_input
from openba.evaluate.harness import Scorer

BATCH = 16


def main(model: Path, pairs_file: Path, out: Path) -> None:
    """Score all pairs both ways, in turn, part by part; write times and log-likelihoods."""
    torch.set_num_threads(1)
    pairs = [tuple(pair) for pair in json.loads(pairs_file.read_text(encoding="utf-8"))]
    ours = Scorer(str(model))
    peer = _peer(model, ours)
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    ours.loglikelihood(pairs[:4])  # kernels are compiled once an installation, and then lie beside the code
    peer.loglikelihood(requests[:4], disable_tqdm=True)
    seconds = {"ours": 0.0, "peer": 0.0}
    found: dict[str, list[float]] = {"ours": [], "peer": []}
    part = -(-len(pairs) // 4)
    for begin in range(0, len(pairs), part):
        chosen = slice(begin, begin + part)
        found["ours"] += _timed(seconds, "ours", lambda: ours.loglikelihood(pairs[chosen]))  # noqa: B023
        found["peer"] += _timed(
            seconds,
            "peer",
            lambda: peer.loglikelihood(requests[chosen], disable_tqdm=True),  # noqa: B023
        )
    out.write_text(json.dumps({"seconds": seconds, "scores": found}), encoding="utf-8")


def _timed(seconds: dict[str, float], who: str, work: Callable[[], Any]) -> list[float]:
    begin = time.process_time()
    scores = [float(score) for score, _ in work()]
    seconds[who] += time.process_time() - begin
    return scores


def _peer(model: Path, ours: Scorer) -> Any:
    class Peer(HFLM):
        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
            del more
            if add_special_tokens is False:
                return [ours.tokenizer.sentinel(0), *ours.tokenizer.encode(string)]
            return encode_input(ours.tokenizer, string, (), ours.length)

    return Peer(
        pretrained=str(model),
        backend="seq2seq",
        trust_remote_code=True,
        batch_size=BATCH,
        device="cpu",
        dtype="float32",
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
