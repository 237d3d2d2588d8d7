"""How far a cleaning is: counted from what its tasks leave, also when a run goes on after a cut."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from openba.artifacts import Build
from openba.data.clean import corpus as step
from openba.data.clean import passes, progress
from openba.data.clean.shards import Plan
from openba.data.schema import DOCUMENTS, write_documents
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe
from tasks.progress import ProgressView


class Cut(Exception):
    """The run ends here."""


def test_a_run_counts_up_and_the_next_one_goes_on_from_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "SHARD_BYTES", 60_000)
    (tmp_path / "a").mkdir()
    table = pq.read_table(corpus / "reviews.parquet")
    write_documents(tmp_path / "a" / DOCUMENTS, table.to_batches(max_chunksize=200), 0)
    build = Build(tmp_path / "out", CorpusRecipe(sources={"a": CleanRecipe()}), {"a": tmp_path / "a"})
    build.out.mkdir()
    assert progress.read(build.out) is None
    seen: list[progress.Progress] = []

    def watched(task: passes.Task, plan: Plan, numbers: Sequence[int]) -> None:
        for number in numbers:
            if len(seen) == 5:
                raise Cut
            task(plan, number)
            seen.append(progress.read(build.out) or pytest.fail("no progress"))

    with pytest.raises(Cut):
        step.build(build, watched)
    before = seen[:]
    step.build(build, lambda task, plan, numbers: [seen.append(x) for x in _each(build, task, plan, numbers)])
    done = [at.done for at in seen]
    assert done == sorted(done)
    assert done[0] == 1
    assert seen[-1].done == seen[-1].total == before[0].total
    assert before[-1].done < before[-1].total
    assert seen[5].done in (before[-1].done, before[-1].done + 1)
    assert next(at.stage for at in seen if at.stage != "finish") in (
        "hash_documents",
        "copies-hash_documents",
    )
    assert seen[-1].seconds_left == 0
    assert 0 < seen[-2].bytes_per_second < 1e9
    assert progress.read(build.out) is None


def _each(build: Build, task: passes.Task, plan: Plan, numbers: Sequence[int]) -> list[progress.Progress]:
    found = []
    for number in numbers:
        task(plan, number)
        found.append(progress.read(build.out) or pytest.fail("no progress"))
    return found


def test_the_console_shows_shards_speed_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tasks.progress._SECONDS_BETWEEN_LINES", 0.0)
    plan = Plan(tmp_path / "shards" / "0", (), {}, 1, bytes=40_000_000)
    plan.folder.mkdir(parents=True)
    progress.begin(
        plan,
        {
            "hash_documents": (4, 4),
            "copies-hash_documents": (1, 1),
            "filter_characters": (4, 4),
            "filter_sentences": (4, 4),
        },
    )
    for number in range(3):
        plan.file("hash_documents", number, "json").write_text("{}")
    view = ProgressView(1)
    view.start("clean", None)
    view.advance("clean", tmp_path)
    view.close()
    line = capsys.readouterr().out
    assert "clean 3/12  shards (hash_documents)" in line
    assert "MB/s  ETA" in line
