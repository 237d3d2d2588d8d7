"""Cleaning when something dies or is full: real kills, a real full disk, a document of 20 MB."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from openba.artifacts import Build, Kind, Step, Store, materialize
from openba.data import sources
from openba.data.clean import corpus as step
from openba.data.clean import passes
from openba.data.clean.shards import Plan
from openba.data.schema import DOCUMENTS, write_documents
from openba.durable import replace_file
from openba.errors import UserError
from openba.graph import CORPUS
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe, FileSource, SourceStep
from tests.data.test_clean_corpus import write_source

ROOT = Path(__file__).resolve().parents[2]
RECIPE = CorpusRecipe(sources={"a": CleanRecipe()})
SHARD_BYTES = 40_000


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews in row groups of 200, some seven shards."""
    folder = tmp_path_factory.mktemp("source")
    table = pq.read_table(corpus / "reviews.parquet")
    write_documents(folder / DOCUMENTS, table.to_batches(max_chunksize=200), 0)
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process gives that nobody disturbs."""
    out = tmp_path_factory.mktemp("undisturbed")
    run(source, out, passes.in_this_process)
    return outputs(out)


def run(source: Path, out: Path, mapper: passes.Mapper) -> None:
    """The step in small shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "SHARD_BYTES", SHARD_BYTES)
        step.build(Build(out, RECIPE, {"a": source}), mapper)


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def counting(done: list[tuple[str, int]]) -> passes.Mapper:
    def mapper(task: passes.Task, plan: Plan, numbers: Sequence[int]) -> None:
        assert len(plan.shards) > 4
        for number in numbers:
            task(plan, number)
            done.append((task.__name__, number))

    return mapper


# Runs the step and kills its own process, as kill -9 does, at the given moment of the pass
# `filter_characters`, or while the finished files are moved to the output folder.
KILLED = """
import os, signal, sys
from pathlib import Path
from openba.data.clean import passes, shards
from tests.data.test_clean_faults import run

moment, source, out = sys.argv[1:]
calls = 0

def dies(function):
    def wrapped(*arguments):
        global calls
        path = Path(arguments[0])
        is_of_pass = path.name.lstrip(".").startswith("filter_characters-")
        calls += is_of_pass and path.suffix != ".json"
        placed = moment == "placing" and path.name == "finish-00002.parquet"
        if placed or calls == 6 and moment != "placing":
            if moment == "mid-shard":  # half of a file's bytes are there
                Path(arguments[0]).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return wrapped

if moment == "mid-shard":
    shards.write_arrow = dies(shards.write_arrow)
else:  # written and synced, not renamed or not placed
    Path.replace = dies(Path.replace)
run(Path(source), Path(out), passes.in_this_process)
"""


@pytest.mark.parametrize("moment", ["mid-shard", "between write and rename", "placing"])
def test_a_killed_run_goes_on_and_does_only_what_is_missing(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path, moment: str
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, moment, str(source), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (plan,) = (tmp_path / "shards").iterdir()
    left = [path.name for path in plan.iterdir() if path.name.startswith(".filter_characters")]
    assert bool(left) == (moment != "placing"), "a partial file is left"
    assert len(list(tmp_path.glob("a.part-*"))) == (2 if moment == "placing" else 0)
    ready = {path.stem for path in plan.glob("*.json")}
    assert "hash_documents-00000" in ready
    again: list[tuple[str, int]] = []
    run(source, tmp_path, counting(again))
    assert outputs(tmp_path) == undisturbed
    redone = {f"{name.replace('search_', 'copies-')}-{number:05d}" for name, number in again}
    assert len(redone) == len(again)
    assert not redone & ready


def killed_at(task: passes.Task, marker: Path, times: int, log: Path, plan: Plan, number: int) -> None:
    """The task, but its process is killed so many times at shard 2 of the pass `filter_characters`."""
    if task is passes.filter_characters and number == 2:
        for turn in range(times):
            try:
                (marker / str(turn)).touch(exist_ok=False)
            except FileExistsError:
                continue
            time.sleep(0.3)  # others get on meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
    task(plan, number)
    with log.open("a") as file:
        file.write(f"{task.__name__} {number}\n")


def killing(mapper: passes.Mapper, folder: Path, times: int) -> passes.Mapper:
    def wrapped(task: passes.Task, plan: Plan, numbers: Sequence[int]) -> None:
        mapper(partial(killed_at, task, folder, times, folder / "log"), plan, numbers)

    return wrapped


def test_a_killed_worker_costs_what_it_was_doing(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    out.mkdir()
    with passes.Processes(2) as processes:
        run(source, out, killing(processes, marks, 1))
    assert outputs(out) == undisturbed
    done = (marks / "log").read_text().splitlines()
    assert "filter_characters 2" in done
    assert len(done) == len(set(done)), "nothing twice"


def test_a_worker_that_always_dies_is_told(source: Path, tmp_path: Path) -> None:
    plan = Plan(tmp_path, (), {}, 1)
    with passes.Processes(1) as processes, pytest.raises(UserError, match="killed 3 times") as error:
        processes(partial(killed_at, passes.filter_characters, tmp_path, 99, tmp_path / "log"), plan, [2])
    assert "\n" not in str(error.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes of its own, mounted; skipped where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_next_run_goes_on(
    source: Path, undisturbed: dict[str, bytes], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "SHARD_BYTES", SHARD_BYTES)
    ballast = small_disk / "ballast"
    ballast.write_bytes(os.urandom(3_500_000))
    store = Store(small_disk / "store", small_disk / "work")
    given = Step("given", Kind("tests.data.test_clean_faults:give", "1"), RECIPE)
    materialize(given, store, source)
    clean = Step("clean", CORPUS, RECIPE, {"a": given})
    with pytest.raises(UserError, match="no space left while writing; free some") as error:
        materialize(clean, store)
    assert "\n" not in str(error.value)
    assert store.manifest(clean) is None
    (plan,) = (store.work / clean.key / "shards").iterdir()
    ready = {path.stem for path in plan.glob("*.json")}
    assert ready
    ballast.unlink()
    again: list[tuple[str, int]] = []
    materialize(clean, store, None, lambda step_, build: step.build(build, counting(again)))
    found = outputs(store.path(clean))
    assert {name: found[name] for name in undisturbed} == undisturbed
    assert not {f"{n.replace('search_', 'copies-')}-{i:05d}" for n, i in again} & ready


def give(build: Build) -> None:
    """A step whose output is the source, which stands in the runtime's place."""
    (build.out / DOCUMENTS).write_bytes((build.runtime / DOCUMENTS).read_bytes())


def test_what_is_written_to_a_full_device_is_no_file(tmp_path: Path) -> None:
    """`/dev/full` gives ENOSPC for every write, also where nothing may be mounted."""
    with pytest.raises(OSError, match="No space left") as error:
        replace_file(tmp_path / "x.json", lambda path: Path("/dev/full").write_text("a" * 100_000))
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_document_of_twenty_megabytes_is_cleaned_as_a_small_one(tmp_path: Path) -> None:
    draw = random.Random(3)
    common = (
        "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就"
        "分对成会可主发年动同工也能下过子说产种面方后多定行学法所民得经"
    )
    sentences = ["".join(draw.sample(common, 32)) + f"第{number}条。" for number in range(190_000)]
    text = "".join(sentences)
    assert len(text.encode()) > 20_000_000
    document = f"{text}请打电话13812345678来问一问好不好吧。{''.join(sentences[:50])}"
    folder = write_source(tmp_path, "a", [document, "短。", sentences[7]])
    (tmp_path / "out").mkdir()
    run(folder, tmp_path / "out", passes.in_this_process)
    kept = pq.read_table(tmp_path / "out" / "a.parquet").to_pylist()
    removed = pq.read_table(tmp_path / "out" / "removed.parquet").to_pylist()
    assert [(row["id"], row["text"]) for row in kept] == [("0", f"{text}请打电话来问一问好不好吧。")]
    assert [(row["id"], row["rule"]) for row in removed] == [
        ("0", "phone"),
        ("0", "duplicate_sentences"),
        ("2", "duplicate_sentences"),
        ("1", "short_sentence"),
    ]


def test_nul_and_control_characters_pass_the_source_and_go_in_cleaning(tmp_path: Path) -> None:
    text = "今天天气非常好，我们一起去公园散步吧。"
    dirty = text[:4] + "\x00\x07\x1b" + text[4:] + "\x7f\u200b\ufffd\x00"
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": dirty}) + "\n" + json.dumps({"text": "\x00" * 50}))
    recipe = FileSource(adapter="jsonl", path=str(tmp_path / "in.jsonl"), language="zh", licence="test")
    (tmp_path / "a").mkdir()
    facts = sources.build(Build(tmp_path / "a", SourceStep(name="a", source=recipe), {}))
    assert (facts["documents"], facts["quarantined"]["rows"]) == (2, 0)
    (tmp_path / "out").mkdir()
    run(tmp_path / "a", tmp_path / "out", passes.in_this_process)
    kept = pq.read_table(tmp_path / "out" / "a.parquet").to_pylist()
    assert [(row["id"], row["text"]) for row in kept] == [("in.jsonl:1", text)]
    removed = pq.read_table(tmp_path / "out" / "removed.parquet").to_pylist()
    assert {row["id"]: row["stage"] for row in removed}["in.jsonl:2"] == "unusual_characters"
