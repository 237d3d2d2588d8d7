"""Experts of a pipeline: one YAML file each, in the folder that `experts.folder` names.

Reads the files and applies the overrides that are for one expert; the recipe's type is in `pipeline.py`.
"""

from __future__ import annotations

import difflib

from openba.config import Config, ConfigError
from openba.recipes.pipeline import ExpertConfig, ExpertsConfig


def read_experts(files: Config, experts: ExpertsConfig, overrides: list[str]) -> dict[str, ExpertConfig]:
    """Return each expert's recipe by name, and note in `files` which file set which key of it.

    Raises:
        ConfigError: there is no such folder, a recipe is wrong, or an override names no expert.
    """
    if experts.folder is None:
        return {}
    folder = files.folder_of("experts.folder") / experts.folder
    if not folder.is_dir():
        raise ConfigError(
            f"{files.source_of('experts.folder')}: experts.folder: {experts.folder}: "
            f"no folder {folder}; a relative path starts at the folder of the file that has it"
        )
    recipe_files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    _check_names(overrides, list(recipe_files))
    recipes = {}
    for name, file in recipe_files.items():
        config = Config.read(file)
        # Before the overrides of the one expert, which therefore win over what is laid over all.
        config.lay_over("train", experts.train, str(files.source_of("experts.train")))
        prefix = f"experts.{name}."
        for text in overrides:
            if text.startswith(prefix):
                config.override(text.removeprefix(prefix))
        recipes[name] = config.validate(ExpertConfig)
        files.adopt(f"experts.{name}", config)
    return recipes


def overrides_of_pipeline(overrides: list[str]) -> list[str]:
    """Return the overrides that are not for one expert's own recipe."""
    return [text for text in overrides if _expert_of(text) is None]


def _expert_of(override: str) -> str | None:
    """Return the expert whose own recipe an override is for; None if it is for the pipeline."""
    parts = override.partition("=")[0].split(".")
    if parts[0] != "experts" or len(parts) < 2 or parts[1] in ExpertsConfig.model_fields:
        return None
    return parts[1]


def _check_names(overrides: list[str], expert_names: list[str]) -> None:
    for text in overrides:
        name = _expert_of(text)
        if name is not None and name not in expert_names:
            sections = [*expert_names, *ExpertsConfig.model_fields]
            close_matches = difflib.get_close_matches(name, sections, 1)
            remedy = (
                f"did you mean {close_matches[0]!r}?"
                if close_matches
                else f"known here: {', '.join(sorted(sections))}"
            )
            raise ConfigError(f"--set: {text.partition('=')[0]}: no expert {name!r} ({remedy})")
