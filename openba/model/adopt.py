"""Step `weights-*`: weights that no step of the pipeline made, checked and copied into the store.

Output: `model/`, a folder that `load_model` reads, in the dtype and the form of files that the weights have.
A copy, since a training that resumes, and its evaluation, need the same bytes whatever becomes of the source.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TypedDict

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor

from openba import durable
from openba.artifacts import Build, fetched
from openba.errors import UserError
from openba.model.files import EMBEDDING, HEAD
from openba.model.loading import load_model
from openba.model.origin import FILE_PATTERNS, TOKENIZER_FILES, is_folder
from openba.recipes.start import WeightsStep

_MEGABYTE = 2**20


class Facts(TypedDict):
    """Facts that the step records in its manifest."""

    parameters: int
    """Numbers in the files; a head that is a copy of the embedding counts."""
    dtype: str
    vocab: int
    """Ids of the tokenizer."""
    rows: int
    """Rows of the embedding."""


def build(build: Build) -> Facts:
    """Check the weights and copy them.

    Raises:
        UserError: a file is missing, damaged or has changed since the pipeline was read; weights, config and
            tokenizer do not belong together; weights that are no floating-point numbers; the hub does not
            answer.
    """
    recipe: WeightsStep = build.recipe
    model_folder = build.out / "model"
    model_folder.mkdir()
    with _source_folder(recipe) as folder:
        for path in sorted(path for path in folder.iterdir() if _is_read(path, folder)):
            shutil.copyfile(path, model_folder / path.name)
    _copy_tokenizer(recipe, model_folder)
    model, tokenizer = load_model(model_folder)
    weights = model.state_dict()
    _check_tails(weights, recipe.start.weights)
    return Facts(
        parameters=sum(tensor.numel() for tensor in weights.values()),
        dtype=str(next(iter(weights.values())).dtype).removeprefix("torch."),
        vocab=tokenizer.size,
        rows=model.architecture.vocab_size,
    )


@contextmanager
def _source_folder(recipe: WeightsStep) -> Iterator[Path]:
    """Provide the folder of the weights, whose files are those of the recipe."""
    if not recipe.location:
        raise UserError(f"weights: {recipe.start.weights}: not there; `openba plan` says what is missing")
    if not recipe.files:
        yield _downloaded(recipe.location, str(recipe.start.revision))
        return
    if is_folder(recipe):
        folder = Path(recipe.location)
        for name, digest in recipe.files.items():
            _check_digest(folder / name, digest)
        yield folder
        return
    with fetched(
        recipe.location, {name: {"sha256": digest} for name, digest in recipe.files.items()}
    ) as output:
        yield output / "model"


def _check_digest(path: Path, digest: str) -> None:
    if not path.is_file() or durable.sha256(path) != digest:
        raise UserError(f"{path}: changed while the pipeline ran; run it again to take the new file")


def _is_read(path: Path, folder: Path) -> bool:
    """Whether a file is copied: of two forms of the weights only safetensors is."""
    is_second_form = ".bin" in path.suffixes and any(folder.glob("*.safetensors"))
    return any(path.match(pattern) for pattern in FILE_PATTERNS) and not is_second_form


def _copy_tokenizer(recipe: WeightsStep, model_folder: Path) -> None:
    """Replace the weights' own tokenizer by the one that the recipe names."""
    if not recipe.tokenizer_files:
        return
    for name in TOKENIZER_FILES:
        (model_folder / name).unlink(missing_ok=True)
    # In the order of the names: the model first, under whatever name, then its config.
    for name, (file, digest) in zip(TOKENIZER_FILES, recipe.tokenizer_files.items(), strict=False):
        _check_digest(Path(file), digest)
        shutil.copyfile(file, model_folder / name)


def _check_tails(weights: dict[str, Tensor], where: str) -> None:
    """Refuse weights of which a part was never written."""
    for name, tensor in weights.items():
        if tensor.dim() < 2 or name in (EMBEDDING, HEAD):
            continue  # biases may be zero, and so may the rows that pad the vocabulary
        # The last megabyte: a download that has only reserved its place ends in zeros.
        if not tensor.flatten()[-_MEGABYTE // tensor.element_size() :].any():
            raise UserError(
                f"weights: {where}: tensor {name} ends in zeros only; the download is not finished, fetch "
                "the file again"
            )


def _downloaded(name: str, revision: str) -> Path:
    """Folder of a model of the hub at a commit, downloaded or from the hub's cache on this machine."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_patterns(name, revision)))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        short_reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"weights: {name} at {revision[:12]}: the hub does not give it ({short_reason}); check name, "
            "commit and network, or give a folder"
        ) from None


def _patterns(name: str, revision: str) -> list[str]:
    """Patterns of the files to fetch: of two forms of the weights only safetensors."""
    try:
        file_names = HfApi().list_repo_files(name, revision=revision)
    except (OfflineModeIsEnabled, OSError):
        return list(FILE_PATTERNS)  # what the cache has was fetched by these rules
    has_safetensors = any(fnmatch(file_name, "*.safetensors") for file_name in file_names)
    return [pattern for pattern in FILE_PATTERNS if not (has_safetensors and ".bin" in pattern)]
