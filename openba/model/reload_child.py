"""Program that loads an exported folder by transformers and the folder's code, without openba.

Owns the other side of `reload.py`: it reads token ids and writes logits. The folder's code is what this
package wrote there; the one that starts this has checked its digests.
"""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any


class Absent(importlib.abc.MetaPathFinder):
    """Makes imports of openba fail: the folder must stand alone."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse openba; other finders come after this one."""
        if name.partition(".")[0] == "openba":
            raise ModuleNotFoundError(name)


def main(folder: str, exchange: str) -> None:
    """Logits of `exchange/ids.safetensors` to `exchange/logits.safetensors`."""
    sys.meta_path.insert(0, Absent())
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    ids = load_file(f"{exchange}/ids.safetensors")
    with torch.no_grad():
        logits = model(input_ids=ids["encoder"], decoder_input_ids=ids["decoder"], use_cache=False).logits
    save_file({"logits": logits.contiguous()}, f"{exchange}/logits.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
