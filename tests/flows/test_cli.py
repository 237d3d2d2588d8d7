"""The command as a user meets it: one line for a mistake, answers without any server."""

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from openba.artifacts import materialize
from openba.config import CONFIGS
from openba.graph import Pipeline, find_pipeline
from openba.home import Home

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
        (("run", "tinny"), "tinny: no such pipeline (did you mean 'tiny'?)"),
        (("plan", str(CONFIGS)), f"{CONFIGS}: no such pipeline"),
        (("plan", "tiny", "--set", "stages.stage9.batch=3"), "stages.stage9: lacks data, encoder_length"),
        (("run", "tiny", "--set", "stages.stage2.optim.lrr=1"), "did you mean 'lr'"),
        (("run", "tiny", "--until", "stage9"), "stage9: no such step"),
        (("run", "tiny", "--untill", "stage1"), "(Possible options: --until); see `openba run --help`"),
        (("explain", "stag1"), "stag1: no such step in tiny (did you mean 'stage1'?)"),
        (("report",), "no report yet"),
        (("eval", "stage1", "bbc-topci"), "no such benchmark (did you mean 'bbc-topic'?)"),
        (("eval", "stage1", "bbc-topic", "--prefix", "Q"), "--prefix Q: no such mode token; take one of"),
        (("eval", "stage1", "bbc-topic", "--out", __file__), "is a file; give a folder"),
        (("serve", "nowhere", "--device", "gpu0"), "--device gpu0: not the name of a device"),
        (("serve", "nowhere", "--device", "cuda:99"), "--device cuda:99: PyTorch sees"),
        (("sweep", "tiny", "--set", "stages.stage1.batch=16"), "nothing varies"),
        (("sweep", "tiny", "--set", "stages.stage1.optim.lrr=1,2"), "did you mean 'lr'"),
        (("sweep", "tiny", "--set", "stages.stage1.batch=8,16", "--until", "mixture"), "is no training"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in one_line(openba(tmp_path, *arguments))
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_a_damaged_report_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("{broken")
    for command in (("report",), ("leaderboard", str(tmp_path))):
        assert "report.json: damaged" in one_line(openba(tmp_path, *command))


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


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    pipeline = own_corpus(tmp_path, "data/none.jsonl")
    line = one_line(openba(tmp_path / "home", "run", pipeline))
    assert "sources.mine: path: data/none.jsonl: no such file or folder" in line


def test_show_names_the_file_behind_each_key(tmp_path: Path) -> None:
    shown = openba(tmp_path, "show", "stage1", "--set", "stages.stage1.optim.lr=2e-3").stdout
    assert "train.optim.lr: 0.002   (--set)" in shown
    assert "train.batch: 32   (configs/pipeline/tiny.yaml)" in shown
    assert "train.data.s_length: fixed   (configs/pretrain/stage1.yaml)" in shown
    assert "model.d_model: 128   (configs/model/tiny.yaml)" in shown
    assert "train.optim.eps: 1e-08   (default)" in shown


def test_show_names_the_file_behind_each_filter(tmp_path: Path) -> None:
    (tmp_path / "configs" / "clean").mkdir(parents=True)
    pipeline = own_corpus(tmp_path, "data/none.jsonl")
    (tmp_path / "configs" / "clean" / "light.yaml").write_text("html: false\n")
    with (tmp_path / "configs" / "source" / "mine.yaml").open("a") as file:
        file.write("clean: light\n")
    shown = openba(tmp_path, "show", "clean", "-p", pipeline).stdout
    assert f"sources.mine.html: False   ({tmp_path}/configs/clean/light.yaml)" in shown
    assert "sources.mine.min_words: 10   (default)" in shown
    assert "sources.bbc-news: None   (default)" in shown
    shipped = openba(tmp_path, "show", "clean", "--set", "clean.min_words=5").stdout
    assert "sources.reviews.html: True   (configs/clean/paper.yaml)" in shipped
    assert "sources.reviews.min_words: 5   (--set)" in shipped


def test_why_tells_rule_span_and_survivor_and_no_private_value(tmp_path: Path) -> None:
    run = "今天天气非常好，我们一起去公园散步吧。这里的风景真是美极了，大家都很喜欢。"
    texts = {
        "first": run,
        "private": f"有什么事情都可以打这个电话13812345678来问我们。{run}",
        "copy": run,
        "untouched": "这是一篇从来没有人改动过的文章，它只有一句话而已。",
    }
    lines = [json.dumps({"content": text, "name": name}) for name, text in texts.items()]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    pipeline = own_corpus(tmp_path, f"{tmp_path}/mine.jsonl")
    with (tmp_path / "configs" / "source" / "mine.yaml").open("a") as file:
        file.write("id_field: name\nclean: true\n")
    home, graph = Home(tmp_path / "home"), Pipeline(find_pipeline(pipeline))
    assert "not built" in one_line(openba(home.root, "data", "why", "private", "-p", pipeline))
    for step in graph.step("clean").walk():
        materialize(step, home.store)
    asked = ("private", "mine/copy", "untouched")
    said = {name: openba(home.root, "data", "why", name, "-p", pipeline) for name in asked}
    assert said["private"].stdout.splitlines() == [
        "mine/private  privacy: phone, characters 13 to 24",
        f"    有什么事情都可以打这个电话⟦[phone]⟧来问我们。{run[:35]}",
        f"mine/private  paragraph_dedup: duplicate_sentences, characters 18 to {18 + len(run)},"
        " a copy of mine/first",
        f"    有什么事情都可以打这个电话来问我们。⟦{run}⟧",
    ]
    whole = f"characters 0 to {len(run)}, a copy of mine/first"
    assert said["mine/copy"].stdout.splitlines() == [
        f"mine/copy  document_dedup: duplicate_document, {whole}",
        f"    ⟦{run}⟧",
    ]
    assert "untouched: nothing was removed" in one_line(said["untouched"])
    assert all("1381234" not in done.stdout + done.stderr for done in said.values())


def test_explain_without_a_build_says_so(tmp_path: Path) -> None:
    assert "never built" in openba(tmp_path, "explain", "stage1").stdout


def test_doctor_finds_this_machine_fit(tmp_path: Path) -> None:
    done = openba(tmp_path, "doctor")
    assert done.returncode == 0, done.stdout
    assert "ok   fastapi" in done.stdout
