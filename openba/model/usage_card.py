"""The model card of an exported folder: what the model is and how it is loaded.

It states only what the folder itself shows. The card with scores, licences and cost is the registry's
(`openba.report.card`).
"""

from __future__ import annotations

from huggingface_hub import ModelCardData

from openba.recipes.architecture import Architecture

CARD = "README.md"

_USE = """\
```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("...", prompt=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```

`openba serve FOLDER` serves the same folder with an OpenAI-compatible API."""


def usage_card(architecture: Architecture, parameters: int) -> str:
    """Return the card as Markdown with the metadata block of the Hugging Face hub.

    Args:
        architecture: the model's shape.
        parameters: how many numbers its weights hold.
    """
    metadata = ModelCardData(
        language=["zh", "en"],
        library_name="transformers",
        pipeline_tag="text2text-generation",
        tags=["openba", "encoder-decoder"],
    )
    rows = {
        "parameters": f"{parameters:,}",
        "encoder blocks": architecture.num_layers,
        "decoder blocks": architecture.num_decoder_layers,
        "width": architecture.hidden_size,
        "heads": f"{architecture.num_heads} of {architecture.kv_channels}",
        "vocabulary, padded": architecture.vocab_size,
        "longest input, longest output": (
            f"{architecture.max_seq_length}, {architecture.decoder_max_seq_length} tokens"
        ),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"---\n{metadata.to_yaml()}\n---\n\n# OpenBA encoder-decoder\n\n| | |\n| --- | --- |\n{table}\n\n"
        f"## Use\n\n{_USE}\n"
    )
