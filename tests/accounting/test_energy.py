"""The paper's energy figures, and a meter that counts what counters say or says nothing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.accounting.carbon_table import ROWS, difference
from openba.accounting.energy import (
    POWERCAP,
    Counter,
    EnergyMeter,
    TrainFacts,
    cost,
    paper_energy,
    totals,
)
from openba.recipes.runtime import DeviceRuntime, PipelineRuntime, TrainRuntime

A100 = DeviceRuntime(
    name="A100-SXM4-80GB", kind="cuda", peak_tflops=312, watts=400, memory=80 * 10**9, utilisation=0.294
)
CLUSTER = PipelineRuntime(
    device=A100, devices=32, train=TrainRuntime(workers=32, micro_batch=16, checkpoint_every=500)
)


@pytest.mark.parametrize(
    ("hours", "mwh", "tonnes"),
    [  # paper Table 5; BLOOM's row prints 475, which its own hours do not give
        (38_214, 16.81, 6.47),
        (82_432, 36.27, 13.96),
        (135_168, 59.47, 22.90),
        (809_472, 356.2, 137.1),
        (1_082_880, 476.5, 183.4),
    ],
)
def test_paper_table_5(hours: float, mwh: float, tonnes: float) -> None:
    carbon = paper_energy(hours, watts=400)
    assert carbon.kwh / 1000 == pytest.approx(mwh, rel=5e-4)
    assert carbon.tco2eq == pytest.approx(tonnes, rel=1e-3)


def test_table_5_follows_from_its_hours_but_for_bloom() -> None:
    assert {row.model: difference(row) for row in ROWS if not row.misprint} == {
        "OPT-175B": 0,
        "LLaMA-7B": 0,
        "LLaMA-13B": 0,
        "OpenBA-15B": 0,
    }
    (bloom,) = (row for row in ROWS if row.misprint)
    assert round(bloom.computed.kwh / 1000, 1) == 476.5
    assert bloom.mwh == 475


def finished(
    flops: float,
    seconds: float,
    workers: int,
    joules: dict[str, float | None] | None = None,
    estimated: dict[str, float | None] | None = None,
) -> TrainFacts:
    return {
        "flops": flops, "flops_useful": 0.6 * flops, "flops_hardware": 0.7 * flops,
        "training_seconds": seconds, "workers": workers, "energy_joules": joules,
        "energy_estimated": estimated or {},
    }  # fmt: skip


def test_money_is_device_hours_at_the_users_price() -> None:
    facts = finished(1e15, 1800.0, 4)
    assert cost(facts, CLUSTER)["money"] is None
    assert cost(facts, CLUSTER.model_copy(update={"price": 2.5}))["money"] == pytest.approx(5.0)


def test_cost_of_the_papers_run() -> None:
    """1.551e22 FLOPs in 38,214 h are 112.7 TFLOP/s per GPU, 36 % of an A100."""
    facts = finished(1.551e22, 38_214 * 3600 / 32, 32)
    result = cost(facts, CLUSTER)
    assert result["device_hours"] == pytest.approx(38_214)
    assert result["energy_kwh_paper"] == pytest.approx(16_814, rel=1e-4)
    assert result["tco2eq_paper"] == pytest.approx(6.47, rel=1e-3)
    assert result["tflops_per_device"] == pytest.approx(112.7, abs=0.1)
    assert result["utilisation"] == pytest.approx(0.361, abs=1e-3)
    assert result["utilisation_useful"] == pytest.approx(0.6 * result["utilisation"])
    assert result["utilisation_hardware"] == pytest.approx(0.7 * result["utilisation"])
    assert result["energy_joules_measured"] is None
    assert result["energy_kwh_measured"] is None
    assert result["energy_domains"] == []


def test_an_estimate_is_in_no_measured_figure() -> None:
    result = cost(finished(1e12, 60.0, 2, None, {"kwh": 2.0, "kgco2eq": 1.2}), CLUSTER)
    assert (result["energy_kwh_estimated"], result["tco2eq_estimated"]) == (2.0, pytest.approx(0.0012))
    assert result["energy_joules_measured"] is result["energy_kwh_measured"] is None
    assert cost(finished(1e12, 60.0, 2), CLUSTER)["energy_kwh_estimated"] is None


def test_cost_sums_the_domains_that_were_measured() -> None:
    facts = finished(1e12, 0.0, 2, {"gpu": None, "cpu": 3.6e6})
    result = cost(facts, CLUSTER)
    assert (result["energy_joules_measured"], result["energy_domains"]) == (3.6e6, ["cpu"])
    assert result["energy_kwh_measured"] == pytest.approx(1.1)  # times PUE
    assert result["tco2eq_measured"] == pytest.approx(1.1e-3 * 0.385)
    assert result["tflops_per_device"] is None
    assert result["utilisation"] is None


@given(
    start=st.floats(0, 262_000),
    used=st.lists(st.floats(0, 200_000), min_size=1, max_size=20),
)
def test_a_counter_that_wraps_loses_nothing(start: float, used: list[float]) -> None:
    wraps_at, readings, total = 262_143.0, [start], start
    for joules in used:
        total += joules
        readings.append(total % wraps_at)
    source = iter(readings)
    counter = Counter(lambda: next(source), wraps_at=wraps_at)
    counter.start()
    for _ in used:
        counter.update()
    assert counter.joules == pytest.approx(sum(used), abs=1e-3)


@pytest.mark.parametrize("readings", [[None, 5.0, 6.0], [5.0, None, 7.0], [5.0, 6.0, 1.0]])
def test_an_unreadable_or_reset_counter_tells_nothing(readings: list[float | None]) -> None:
    source = iter(readings)
    counter = Counter(lambda: next(source))
    counter.start()
    counter.update()
    counter.update()
    assert counter.joules is None


def zone(powercap: Path, name: str, label: str, microjoules: str) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    return folder


def test_meter_adds_packages_over_a_wrap(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", "262143000000")
    second = zone(tmp_path, "intel-rapl:1", "package-1", "1000000")
    zone(tmp_path, "intel-rapl:0:0", "core", "5")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", "5")
    with EnergyMeter(tmp_path) as meter:
        (first / "energy_uj").write_text("1000000\n")
        (second / "energy_uj").write_text("3500000\n")
    assert meter.joules()["cpu"] == pytest.approx(0.32885 + 1.0 + 2.5)


@pytest.mark.parametrize(
    ("labels", "starts", "expected"),
    [
        (("package-0-die-0", "package-0-die-1"), (5_000_000_000, 5_000_000_400), 100.0),  # AMD: one counter
        (
            ("package-0-die-0", "package-0-die-1"),
            (5_000_000_000, 4_800_000_000),
            200.0,
        ),  # Intel: a counter a die
        (("package-0", "package-0"), (5_000_000_000, 5_000_000_000), 100.0),
        (("package-0", "package-1"), (5_000_000_000, 5_000_000_000), 200.0),  # two sockets
    ],
)
def test_one_counter_shown_twice_is_counted_once(
    tmp_path: Path, labels: tuple[str, str], starts: tuple[int, int], expected: float
) -> None:
    zones = [zone(tmp_path, f"intel-rapl:{i}", label, str(starts[i])) for i, label in enumerate(labels)]
    with EnergyMeter(tmp_path) as meter:
        for folder, start in zip(zones, starts, strict=True):
            (folder / "energy_uj").write_text(f"{start + 100_000_000}\n")
    assert meter.joules()["cpu"] == pytest.approx(expected)


def test_meter_tells_nothing_if_one_package_cannot_be_read(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "1000000")
    zone(tmp_path, "intel-rapl:1", "package-1", "1000000")
    with EnergyMeter(tmp_path) as meter:
        (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules()["cpu"] is None


def test_meter_without_counters_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with EnergyMeter(tmp_path) as meter:
        sum(range(10**5))
    assert meter.joules() == {"gpu": None, "cpu": None}


def test_meter_on_this_machine_never_invents() -> None:
    with EnergyMeter() as meter:
        sum(range(10**6))
    assert set(meter.joules()) == {"gpu", "cpu"}
    assert all(joules is None or joules >= 0 for joules in meter.joules().values())
    if not POWERCAP.exists():
        assert meter.joules()["cpu"] is None


def test_a_part_of_the_nodes_is_no_total() -> None:
    both: list[dict[str, float | None] | None] = [{"cpu": 5.0, "gpu": 1.0}, {"cpu": 7.0, "gpu": None}]
    assert totals(both) == {"cpu": 12.0, "gpu": None}
    assert totals([{"cpu": 5.0}, None]) == {"cpu": None}
    assert totals([]) == {}
