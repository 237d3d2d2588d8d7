"""The documentation as a site, built without network, and its reference of every key."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from openba.recipes.pipeline import PipelineConfig
from openba.recipes.train import TrainRecipe

SITE = Path(__file__).resolve().parents[1] / "infra" / "site"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", SITE / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_is_built_and_its_pages_link_to_each_other(tmp_path: Path) -> None:
    config = ["--config-file", SITE / "mkdocs.yaml", "--site-dir", tmp_path]
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", *config], check=True)
    for page in ("architecture.html", "configuration.html", "reference.html", "log/README.html"):
        assert (tmp_path / page).is_file() or (tmp_path / page.replace("README", "index")).is_file()
    text = (tmp_path / "reference.html").read_text(encoding="utf-8")
    targets = set(re.findall(r'href="#([\w-]+)"', text))
    assert {"trainrecipe", "mixturerecipe", "pipelineruntime"} <= targets
    assert targets <= set(re.findall(r'id="([\w-]+)"', text))


def test_the_reference_has_every_key_with_its_meaning(reference: ModuleType) -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", reference.page(), re.MULTILINE | re.DOTALL))
    for model in (PipelineConfig, TrainRecipe):
        assert re.findall(r"^\| `(\w+)` \|", sections[model.__name__], re.MULTILINE) == list(
            model.model_fields
        )
    assert "| `budget` | " in sections["TrainRecipe"]
    assert "Tokens are counted as the paper's Table 2 seems to" in sections["TrainRecipe"]
    assert "Samples per optimiser step, over all workers" in sections["StageConfig"], (
        "inherited keys have theirs"
    )
