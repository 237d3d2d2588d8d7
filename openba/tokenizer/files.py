"""Write a tokenizer's files into an exported folder, so that transformers loads it there without openba.

The files are `spiece.model`, `tokenizer_config.json`, `chat_template.jinja` and copies of the two modules
that read them. transformers is not imported here: training workers export models, and its import takes
seconds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from openba.tokenizer.pieces_openba import CHAT_TEMPLATE, MODEL_FILE
from openba.tokenizer.tokenizer import CONFIG_FILE, GROWN, SWITCH, Tokenizer

MODULES = ("tokenization_openba.py", "pieces_openba.py")


def write_tokenizer_files(folder: Path, tokenizer: Tokenizer, model_max_length: int | None = None) -> None:
    """Write everything `AutoTokenizer.from_pretrained(folder, trust_remote_code=True)` needs.

    Args:
        folder: an existing folder; `Tokenizer.load(folder)` reads it too.
        tokenizer: the tokenizer, whose own file is copied.
        model_max_length: tokens that the model reads; None: not stated.
    """
    config: dict[str, object] = {
        "tokenizer_class": "OpenBATokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_openba.OpenBATokenizer", None]},
        SWITCH: tokenizer.whitespace,
    }
    if tokenizer.grown:
        config[GROWN] = list(tokenizer.grown)
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    # A tokenizer may have been loaded from this very folder.
    if tokenizer.path.resolve() != (folder / MODEL_FILE).resolve():
        shutil.copyfile(tokenizer.path, folder / MODEL_FILE)
    for name in MODULES:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
