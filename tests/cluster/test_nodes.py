"""Training on Ray nodes with addresses of their own: a fault of a node changes nothing of what is learnt."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.operations.cluster import STEPS, Result, job, kill, partition, reach, result
from openba.train.log import EVENTS, read_rows
from tests.harness.namespaces import Network, missing
from tests.harness.ray_nodes import RayCluster

WORKERS = 2
"""On nodes with one place each."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, since Unix sockets lie below it."""
    if reason := missing():
        pytest.skip(reason)
    path = Path(tempfile.mkdtemp(prefix="oba"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def inputs(tokenizer_folder: Path, mixture_folder: Path) -> dict[str, Path]:
    return {"tokenizer": tokenizer_folder, "data": mixture_folder}


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[RayCluster]:
    with Network(folder) as network:
        yield RayCluster(network, nodes=2)


@pytest.fixture(scope="module")
def undisturbed(cluster: RayCluster, folder: Path, inputs: dict[str, Path]) -> Result:
    training = cluster.train("undisturbed", job(folder / "undisturbed", inputs, WORKERS))
    reach(training, 1)
    for number, joules in ((1, 5.0), (2, 7.25)):
        cluster.network.machines[number].use(joules)
    assert cluster.working() == [1, 2]
    return result(training)


def test_energy_is_the_sum_over_nodes(undisturbed: Result) -> None:
    assert undisturbed.facts["workers"] == WORKERS
    assert undisturbed.facts["energy_joules"]["cpu"] == pytest.approx(12.25)
    assert undisturbed.facts["cost"]["energy_kwh_measured"] == pytest.approx(12.25 / 3.6e6 * 1.1)


def test_a_partition_of_twenty_seconds_loses_nothing(
    cluster: RayCluster, folder: Path, inputs: dict[str, Path], undisturbed: Result
) -> None:
    training = cluster.train("partition", job(folder / "partition", inputs, WORKERS))
    partition(cluster, training)
    found = result(training)
    assert found.steps == list(range(1, STEPS + 1))
    assert found.digest == undisturbed.digest
    # So short a training does not use its source yet, disturbed or not.
    events = {row["event"] for row in read_rows(training.out / EVENTS)}
    assert events <= {"rehearsed", "source not used"}


def test_a_node_that_dies_is_waited_for(
    cluster: RayCluster, folder: Path, inputs: dict[str, Path], undisturbed: Result
) -> None:
    """One place is left for two workers: the group starts again when the node is back."""
    training = cluster.train("killed", job(folder / "killed", inputs, WORKERS))
    number = kill(cluster, training)
    cluster.start(number)
    found = result(training)
    assert found.facts["resumed"] == 1
    assert found.steps == list(range(1, STEPS + 1))
    assert found.digest == undisturbed.digest
