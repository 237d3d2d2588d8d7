"""Identity, completeness and building once."""

import errno
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from openba import artifacts, durable
from openba.artifacts import Build, Kind, Recipe, Runtime, Step, Store, drift, fetched, materialize
from openba.errors import UserError

CALLS: list[str] = []


class Number(Recipe):
    value: int


class Machine(Runtime):
    cores: int


def write_number(build: Build) -> dict[str, Any]:
    CALLS.append(build.out.parent.name)
    (build.out / "number.txt").write_text(str(build.recipe.value))
    return {"value": build.recipe.value}


def write_sum(build: Build) -> dict[str, Any]:
    total = sum(int((folder / "number.txt").read_text()) for folder in build.inputs.values())
    (build.out / "number.txt").write_text(str(total + build.recipe.value))
    return {"total": total}


def fill_disk(build: Build) -> dict[str, Any]:
    (build.out / "half.txt").write_text("half")
    Path("/dev/full").write_text("the kernel answers every write here with ENOSPC")
    return {}


def go_on(build: Build) -> dict[str, Any]:
    done = build.out / "done.txt"
    done.write_text((done.read_text() if done.exists() else "") + "x")
    if len(done.read_text()) < 2:
        raise RuntimeError("interrupted")
    return {}


def train(build: Build) -> dict[str, Any]:
    """Leaves a checkpoint to resume from, and an output."""
    CALLS.append("train")
    (build.out / "checkpoints").mkdir(exist_ok=True)
    (build.out / "checkpoints" / "step").write_text("state")
    (build.out / "model").write_text("weights")
    return {"loss": float("nan")}


def kind(function: Any, **more: Any) -> Kind:
    return Kind(f"{__name__}:{function.__name__}", "1", **more)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, __name__, sys.modules.get(__name__) or sys.modules[write_number.__module__]
    )
    CALLS.clear()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", tmp_path / "work")


def two(value: int = 1) -> tuple[Step, Step]:
    first = Step("first", kind(write_number), Number(value=value))
    return first, Step("second", kind(write_sum), Number(value=10), {"first": first})


def test_a_complete_step_is_reused(store: Store) -> None:
    first, second = two()
    materialize(first, store)
    record = materialize(second, store)
    assert record["facts"] == {"total": 1}
    assert materialize(second, store) == record
    assert (store.path(second) / "number.txt").read_text() == "11"


def test_recipe_input_and_version_change_the_fingerprint_runtime_does_not(store: Store) -> None:
    first, second = two()
    other_first, other_second = two(value=2)
    assert first.fingerprint != other_first.fingerprint
    assert second.fingerprint != other_second.fingerprint, "an input's recipe is part of the identity"
    newer = Step("first", Kind(first.kind.function, "2"), first.recipe)
    assert newer.fingerprint != first.fingerprint
    materialize(first, store, Machine(cores=1))
    CALLS.clear()
    materialize(first, store, Machine(cores=64))
    assert CALLS == []


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    script = (
        "from openba.artifacts import Kind, Step; from openba.recipes.model import ModelRecipe;"
        "m = ModelRecipe(d_model=8, num_heads=2, kv_channels=4, ffn=16, encoder_layers=1, decoder_layers=3);"
        "print(Step('s', Kind('a:b', '1'), m).fingerprint)"
    )
    seen = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(seen) == 1


@pytest.mark.parametrize("damage", ["delete", "truncate", "manifest"])
def test_a_lost_or_truncated_output_is_rebuilt(store: Store, damage: str) -> None:
    first, _ = two()
    materialize(first, store)
    file = store.path(first) / "number.txt"
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        file.write_text("")
    else:
        (store.path(first) / "manifest.json").write_text('{"name": "first", ')
    assert store.manifest(first) is None
    materialize(first, store)
    assert file.read_text() == "1"
    assert len(CALLS) == 2


def test_a_step_without_its_inputs_says_so(store: Store) -> None:
    with pytest.raises(UserError, match="second: inputs not built: first"):
        materialize(two()[1], store)


def test_a_full_disk_leaves_no_half_output(store: Store) -> None:
    step = Step("big", kind(fill_disk), Number(value=1))
    with pytest.raises(UserError, match="no space left"):
        materialize(step, store)
    assert store.manifest(step) is None
    assert not (store.work / step.key).exists()


def test_a_resumable_step_goes_on_in_its_folder(store: Store) -> None:
    step = Step("long", kind(go_on, resumable=True), Number(value=1))
    with pytest.raises(RuntimeError):
        materialize(step, store)
    materialize(step, store)
    assert (store.path(step) / "done.txt").read_text() == "xx"


def _hold(lock: str, ready: Any) -> None:
    import fcntl
    import time

    with open(lock, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ready.set()
        time.sleep(60)


def test_two_processes_do_not_build_the_same_step(store: Store) -> None:
    first, _ = two()
    lock = store.work / f"{first.key}.lock"
    lock.parent.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(lock), ready))
    holder.start()
    ready.wait(10)
    with pytest.raises(UserError, match="builds it"):
        materialize(first, store)
    holder.kill()
    holder.join()
    assert materialize(first, store)["facts"] == {"value": 1}, "a killed holder frees the lock"


def test_drift_names_the_changed_field(store: Store) -> None:
    first, _ = two()
    materialize(first, store)
    changed, _ = two(value=5)
    assert drift(changed, store) == {"recipe.value": (1, 5)}


def test_a_remote_store_is_complete_only_with_its_manifest(tmp_path: Path) -> None:
    store = Store("memory://bucket/store", tmp_path / "work")
    first, second = two()
    materialize(first, store)
    assert materialize(second, store)["facts"] == {"total": 1}
    assert store.uri(second).startswith("memory://bucket/store/second/")
    store.fs.rm(f"{store.base}/{first.key}/manifest.json")
    assert store.manifest(first) is None


@pytest.mark.parametrize("root", ["store", "memory://fetched"])
def test_fetch_refuses_a_damaged_file(root: str, tmp_path: Path) -> None:
    store = Store(root if ":" in root else tmp_path / root, tmp_path / "work")
    first, _ = two()
    record = materialize(first, store)
    with fetched(store.uri(first), record["files"]) as folder:
        assert (folder / "number.txt").read_text() == "1"
    # A local store's own files stay, a remote one's copy does not.
    assert folder.exists() is not store.remote
    with store.fs.open(f"{store.base}/{first.key}/number.txt", "w") as file:
        file.write("7")  # same size, other content
    with pytest.raises(UserError, match="damaged"), fetched(store.uri(first), record["files"]):
        pass
    store.fs.rm(f"{store.base}/{first.key}/number.txt")
    with pytest.raises(UserError, match="missing"), fetched(store.uri(first), record["files"]):
        pass


@pytest.mark.parametrize("root", ["store", "memory://outside"])
@pytest.mark.parametrize(
    "name", ["../X", "model/../../X", "/tmp/X", "a//X", "..\\X", "C:X", "./X", "a/\0", ""]
)
def test_a_name_that_leads_out_of_the_folder_is_refused_before_anything_is_written(
    root: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    store = Store(root if ":" in root else tmp_path / root, tmp_path / "work")
    first, _ = two()
    record = materialize(first, store)
    before = sorted(tmp_path.rglob("*"))
    files = record["files"] | {name: record["files"]["number.txt"]}
    with pytest.raises(UserError, match="leads out of its folder"), fetched(store.uri(first), files):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_remote_store_writes_nothing_outside_its_copy(tmp_path: Path) -> None:
    store = Store("memory://traversal", tmp_path / "work")
    first, _ = two()
    materialize(first, store)
    store.fs.store[f"{store.base}/{first.key}/../../../X"] = store.fs.store[
        f"{store.base}/{first.key}/number.txt"
    ]
    with pytest.raises(UserError, match="leads out of its folder"):
        store.path(first)
    assert not list(tmp_path.rglob("X"))


def test_manifest_records_size_and_digest(store: Store) -> None:
    first, _ = two()
    materialize(first, store)
    record = json.loads((store.path(first) / artifacts.MANIFEST).read_text())
    assert record["files"]["number.txt"]["bytes"] == 1
    assert len(record["files"]["number.txt"]["sha256"]) == 64


def trained() -> Step:
    return Step("train", kind(train, resumable=True, scratch=("checkpoints",)), Number(value=1))


def test_scratch_is_no_output_and_goes_when_the_output_is_durable(store: Store) -> None:
    record = materialize(trained(), store)
    assert list(record["files"]) == ["model"]
    assert sorted(path.name for path in store.path(trained()).iterdir()) == ["manifest.json", "model"]
    assert json.loads((store.path(trained()) / "manifest.json").read_text())["facts"] == {"loss": None}


@pytest.mark.parametrize("remote", [False, True])
def test_a_failed_publish_costs_no_second_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    root = "memory://bucket/failed" if remote else tmp_path / "store"
    store, step = Store(root, tmp_path / "work"), trained()
    with monkeypatch.context() as patched:
        refused = OSError(errno.EROFS, "Read-only file system")
        patched.setattr(store, "publish", lambda *_: (_ for _ in ()).throw(refused))
        with pytest.raises(UserError, match="Read-only file system") as told:
            materialize(step, store)
    assert "\n" not in str(told.value)
    assert (store.work / step.key / "checkpoints" / "step").read_text() == "state"
    assert store.manifest(step) is None
    materialize(step, store)
    assert CALLS == ["train"]
    assert (store.path(step) / "model").read_text() == "weights"


def test_a_kill_before_the_store_has_it_costs_no_second_build(tmp_path: Path) -> None:
    """The process is killed when its output is to be moved into the store."""
    script = (
        "import os, signal, sys; from pathlib import Path; from tests.test_artifacts import *;"
        "sys.modules['__main__'] = sys.modules['tests.test_artifacts'];"
        "store = Store(Path(sys.argv[1]) / 'store', Path(sys.argv[1]) / 'work');"
        "store._move_into_place = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        "materialize(trained(), store)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[1], check=False
    )
    assert ended.returncode == -9
    store = Store(tmp_path / "store", tmp_path / "work")
    assert store.unpublished(trained()) is not None
    materialize(trained(), store)
    assert CALLS == []
    assert (store.path(trained()) / "model").read_text() == "weights"


def test_a_damaged_unpublished_output_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, step = Store(tmp_path / "store", tmp_path / "work"), trained()
    with monkeypatch.context() as patched:
        patched.setattr(store, "publish", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(UserError, match="no space left"):
            materialize(step, store)
    (store.work / step.key / "model").write_text("weightz")
    materialize(step, store)
    assert CALLS == ["train", "train"]


def test_a_store_on_another_file_system_works(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=shared_memory) as other:
        store = Store(Path(other) / "store", tmp_path / "work")
        first, second = two()
        materialize(first, store)
        assert materialize(second, store)["facts"] == {"total": 1}
        assert materialize(first, store)["facts"] == {"value": 1}
        assert not (store.work / first.key).exists()
        assert [record["fingerprint"] for record in store.siblings("first")] == [first.fingerprint]
        assert not list((Path(other) / "store").glob(".incoming/first/*"))


@pytest.mark.parametrize("root", ["store", "memory://verified"])
def test_an_input_with_a_flipped_bit_is_refused(root: str, tmp_path: Path) -> None:
    store = Store(root if ":" in root else tmp_path / root, tmp_path / "work")
    first, second = two()
    materialize(first, store)
    with store.fs.open(f"{store.base}/{first.key}/number.txt", "w") as file:
        file.write("3")  # same size
    with pytest.raises(UserError, match=r"number.txt: damaged \(digest differs from the manifest\); delete"):
        materialize(second, store)
    assert store.manifest(second) is None


def test_a_file_is_hashed_once_per_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = two()
    materialize(first, store)
    hashed: list[Path] = []
    real = durable.sha256
    monkeypatch.setattr(durable, "sha256", lambda path: hashed.append(path) or real(path))
    store.verified_path(first)
    store.verified_path(first)
    assert [path.name for path in hashed] == ["number.txt"]


def test_a_flipped_bit_of_the_manifest_is_a_miss(store: Store) -> None:
    first, _ = two()
    materialize(first, store)
    path = store.path(first) / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        # White space, which no digest covers, changes nothing.
        assert store.manifest(first) is None or json.loads(flipped) == json.loads(content)
