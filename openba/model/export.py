"""A model's folder in other forms: safetensors with code and card, the released form, CTranslate2.

Owns which forms there are and that a folder is complete or not there. Each form's writer is its own module's.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal, get_args

from openba.errors import UserError
from openba.model.files import save_model, write_released
from openba.model.loading import load_model
from openba.tokenizer.files import write_tokenizer_files

Format = Literal["safetensors", "released", "ctranslate2"]
FORMATS: tuple[str, ...] = get_args(Format)


def check_form(form: str) -> None:
    """Refuse a form that is not written.

    Raises:
        UserError: says which forms are, and of ONNX why it is not.
    """
    if form == "onnx":
        raise UserError(
            "--format onnx: not written, since torch's exporter needs onnx and onnxscript, which openba does "
            "not install; take ctranslate2 for CPUs, or safetensors for exporters of transformers' models"
        )
    if form not in FORMATS:
        raise UserError(f"--format: {form!r} is unknown; take one of {', '.join(FORMATS)}")


def export(folder: Path, out: Path, form: Format, quantization: str = "float32") -> None:
    """Write a model's folder in another form.

    Args:
        folder: a model's folder, of this package's exports or as released.
        out: must not exist or be empty.
        form: `safetensors`: this package's own layout, loadable by transformers; `released`: the layout and
            dtype of the published weights; `ctranslate2`: for that engine.
        quantization: of `ctranslate2` alone.

    Raises:
        UserError: `out` holds something; the form cannot say what the model has; CTranslate2 is not
            installed; see `load_model`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; give another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        written = Path(scratch) / "model"
        if form == "ctranslate2":
            _write_ctranslate2(folder, written, quantization)
        else:
            model, tokenizer = load_model(folder)
            if form == "safetensors":
                save_model(written, model.state_dict(), model.architecture, tokenizer)
            else:
                write_released(written, model.state_dict(), model.architecture)
                write_tokenizer_files(written, tokenizer, model_max_length=model.architecture.max_seq_length)
        if out.exists():
            out.rmdir()
        shutil.move(written, out)


def _write_ctranslate2(folder: Path, out: Path, quantization: str) -> None:
    try:
        from openba.model.ctranslate2_files import write_ctranslate2
    except ImportError:
        raise UserError(
            "export: CTranslate2 is not installed; run pip install 'openba[export]', or choose another form"
        ) from None
    write_ctranslate2(folder, out, quantization)
