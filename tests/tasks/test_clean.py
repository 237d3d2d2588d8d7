"""Cleaning by Ray Data on a real local Ray: the bytes of one process, also when a worker is killed."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from openba.artifacts import Build, Step
from openba.data.clean import passes
from openba.data.clean.corpus import build as corpus_build
from openba.data.clean.shards import Plan
from openba.data.schema import DOCUMENTS, write_documents
from openba.errors import UserError
from openba.graph import CORPUS, Pipeline, find_pipeline
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import CorpusRecipe
from tasks.clean import on_ray
from tasks.places import kind_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs; its workers find this package as jobs do, by the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                 object_store_memory=80 * 2**20, logging_level="ERROR")  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture
def reviews(corpus: Path, tmp_path: Path) -> Path:
    """A source step's output in row groups of 300."""
    (tmp_path / "reviews").mkdir()
    table = pq.read_table(corpus / "reviews.parquet")
    write_documents(tmp_path / "reviews" / DOCUMENTS, table.to_batches(max_chunksize=300), 0)
    return tmp_path / "reviews"


def killed_once(task: passes.Task, marker: Path, plan: Plan, number: int) -> None:
    """The task, but the first worker that comes by is killed as the kernel does without memory."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        task(plan, number)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def broken(error: Exception, plan: Plan, number: int) -> None:
    """A task that fails."""
    raise error


def test_ray_gives_the_bytes_of_one_process(
    cluster: None, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openba.data.clean.corpus.SHARD_BYTES", 40_000)

    def first_worker_killed(task: passes.Task, plan: Plan, numbers: list[int]) -> None:
        assert len(plan.shards) > 2
        on_ray(partial(killed_once, task, tmp_path / "marker"), plan, numbers)

    outputs = []
    for name, mapper in {"one": passes.in_this_process, "ray": first_worker_killed}.items():
        (tmp_path / name).mkdir()
        recipe = CorpusRecipe(sources={"reviews": CleanRecipe()})
        facts = corpus_build(Build(tmp_path / name, recipe, {"reviews": reviews}), mapper)
        outputs.append((facts, {p.name: p.read_bytes() for p in (tmp_path / name).glob("*.parquet")}))
    assert (tmp_path / "marker").exists()
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("shard 3: what the user reads"), "what the user reads"),
        (OSError(28, "No space"), "No space"),
    ],
)
def test_an_error_comes_back_as_it_was_raised(
    cluster: None, tmp_path: Path, error: Exception, told: str
) -> None:
    plan = Plan(tmp_path, (), {}, 1)
    with pytest.raises(type(error), match=told) as raised:
        on_ray(partial(broken, error), plan, [0])
    assert getattr(raised.value, "errno", None) == getattr(error, "errno", None)


def test_the_runtime_names_who_cleans() -> None:
    def place(runtime: str) -> tuple[str, str]:
        graph = Pipeline(find_pipeline("tiny"), [f"runtime={runtime}"])
        step: Step = graph.step("clean")
        assert step.kind is CORPUS
        kind = kind_of(step, graph.config.runtime)
        assert kind.version == CORPUS.version
        return kind.function, kind.place

    assert place("cpu") == place("gpu") == ("openba.data.clean.corpus:build", "flow")
    assert place("paper") == ("tasks.clean:build", "job")


def test_batches_are_numbers(cluster: None, tmp_path: Path) -> None:
    """What Ray carries is a number a shard, so that no text is ever in its object store."""
    from tasks.clean import _run

    done = _run(pa.table({"id": [1]}), lambda plan, number: None, Plan(tmp_path, (), {}, 1), [5, 7])
    assert done.to_pylist() == [{"number": 7, "error": "", "errno": 0}]
