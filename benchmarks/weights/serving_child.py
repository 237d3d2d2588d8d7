"""Program that answers requests by one engine: `CLIENTS MODEL [ADAPTER...]`; it begins at a line of input.

Request `n` is answered by adapter `n` modulo their number. Prints a line for each answer, in order.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import torch

from openba.model.adapter_bank import NO_ADAPTER, AdapterBank
from openba.model.loading import load_model
from openba.serve.decoding_engine import DecodingEngine
from openba.serve.engine import EngineSettings, Generation

NEW_TOKENS = 48
SOURCE_TOKENS = 48


def main(clients: int, threads: int, model_folder: Path, adapter_folders: list[Path]) -> None:
    """Answer all requests and print the answers."""
    torch.set_num_threads(threads)
    model, tokenizer = load_model(model_folder)
    bank = None
    if adapter_folders:
        bank = AdapterBank(model, model_folder, {str(n): folder for n, folder in enumerate(adapter_folders)})
    done = threading.Event()
    generations: list[Generation] = []

    def notify(changed: list[Generation]) -> None:
        if generations and all(generation.finish_reason for generation in generations):
            done.set()

    engine = DecodingEngine(model, EngineSettings(tokenizer, clients, clients, notify), bank)
    adapter_count = len(adapter_folders)
    for number in range(clients):
        # The same requests whether one engine has all adapters or each its own.
        torch.manual_seed(number // max(1, adapter_count))
        source = tokenizer.pieces.prompt(torch.randint(300, tokenizer.base, (SOURCE_TOKENS,)).tolist())
        adapter = number % adapter_count if adapter_count else NO_ADAPTER
        generations.append(Generation(source, NEW_TOKENS, adapter=adapter))
    print("ready", flush=True)
    sys.stdin.readline()
    engine.submit(generations)
    done.wait()
    engine.close()
    for generation in generations:
        print(generation.output_ids)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), [Path(folder) for folder in sys.argv[4:]])
