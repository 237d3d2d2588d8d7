"""What the exported tasks' YAML names, and with it `--model openba`: importing this registers the model.

lm-eval 0.4.13 looks for no plugins, but it imports what a task's file names before it looks for the model.
So plain `lm_eval --model openba --tasks FILE` finds both. Imported by lm-eval only.
"""

from __future__ import annotations

from typing import Any

from openba.evaluate.harness import register

register()


def prompt(item: dict[str, Any]) -> str:
    """The `doc_to_text` of every exported task: the item's text as our evaluation renders it."""
    return str(item["input"])
