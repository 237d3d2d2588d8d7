"""The command as a user meets it: one line for a mistake, answers without any server."""

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from openba.config import CONFIGS

OPENBA = str(Path(sys.executable).with_name("openba"))


def openba(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "MLFLOW_"))}
    env = kept | {"OPENBA_HOME": str(home)}
    return subprocess.run([OPENBA, *arguments], env=env, capture_output=True, text=True, timeout=200)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "tinny"), "tinny: no such pipeline"),
        (("run", "tiny", "--set", "stage2.optim.lrr=1"), "did you mean 'lr'"),
        (("run", "tiny", "--until", "stage9"), "stage9: no such step"),
        (("run", "tiny", "--untill", "stage1"), "No such option: --untill"),
        (("explain", "stag1"), "stag1: no such step"),
        (("report",), "no report yet"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in one_line(openba(tmp_path, *arguments))
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_a_port_in_use_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = openba(tmp_path, "run", "tiny", "--set", f"runtime.services.prefect_port={port}")
    assert f"runtime.services.prefect_port: port {port} is in use" in one_line(done)


def own_corpus(tmp_path: Path, path: str) -> str:
    """A pipeline whose only Chinese source is a file of the user's."""
    pipeline = tmp_path / "configs" / "pipeline" / "mine.yaml"
    (tmp_path / "configs" / "source").mkdir(parents=True)
    pipeline.parent.mkdir()
    (tmp_path / "configs" / "source" / "mine.yaml").write_text(
        f"adapter: jsonl\npath: {path}\ntext_field: content\nlanguage: zh\nlicence: own\n"
    )
    pipeline.write_text(
        f"extends: {CONFIGS}/pipeline/tiny\nname: mine\nsources: [mine, bbc-news, python-code]\n"
        f"experts: {{folder: {CONFIGS}/finetune}}\n"
    )
    return str(pipeline)


def test_a_missing_source_file_stops_before_any_server(tmp_path: Path) -> None:
    done = openba(tmp_path / "home", "run", own_corpus(tmp_path, "data/none.jsonl"))
    assert "data/none.jsonl" in one_line(done)
    assert not (tmp_path / "home").exists()


def test_a_corrupt_shard_is_named_and_nothing_else_is_lost(tmp_path: Path) -> None:
    whole = gzip.compress(
        b"".join(json.dumps({"content": f"{i} " * 30}).encode() + b"\n" for i in range(500))
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    pipeline = own_corpus(tmp_path, f"{tmp_path}/in")
    done = openba(tmp_path / "home", "run", pipeline, "--until", "source-mine")
    assert done.returncode == 0, done.stderr
    assert "1 file and 0 rows set aside; first: " in done.stdout
    assert "cut.jsonl.gz: broken gzip, cut off after row" in done.stdout
    (manifest,) = (tmp_path / "home").glob("store/source-mine/*/manifest.json")
    assert 100 < json.loads(manifest.read_text())["facts"]["documents"] < 500


def test_plan_needs_no_server_and_speaks_json(tmp_path: Path) -> None:
    planned = json.loads(openba(tmp_path, "plan", "paper", "--json").stdout)
    steps = {step["name"]: step for step in planned["steps"]}
    assert steps["stage1"]["state"] == "miss"
    assert steps["stage1"]["training"]["steps"] == 77_098
    assert {"tokens", "flops", "gpu_hours", "kwh", "tco2eq"} <= planned["total"].keys()


def test_show_names_the_file_behind_each_key(tmp_path: Path) -> None:
    shown = openba(tmp_path, "show", "stage1", "--set", "stage1.optim.lr=3e-5").stdout
    assert "train.optim.lr: 3e-05   (--set)" in shown
    assert "train.batch: 32   (configs/pipeline/tiny.yaml)" in shown
    assert "train.data.s_length: fixed   (configs/pretrain/stage1.yaml)" in shown
    assert "model.d_model: 128   (configs/model/tiny.yaml)" in shown
    assert "train.optim.eps: 1e-08   (default)" in shown


def test_explain_without_a_build_says_so(tmp_path: Path) -> None:
    assert "never built" in openba(tmp_path, "explain", "stage1").stdout


def test_doctor_finds_this_machine_fit(tmp_path: Path) -> None:
    done = openba(tmp_path, "doctor")
    assert done.returncode == 0, done.stdout
    assert "ok   fastapi" in done.stdout
