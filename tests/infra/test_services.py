"""The services of infra/compose.yaml, running, and the small end of a pipeline trained through them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg2
import pytest
import redis

from openba.config import CONFIGS
from tests.harness.programs import require_programs
from tests.infra.stack import PROGRAMS, Stack, program

pytestmark = pytest.mark.timeout(600)

PIPELINE = f"""
extends: {CONFIGS}/pipeline/tiny
name: services
sources: [bbc-news]
tokenizer: {{vocab_size: 2000, train_characters: 100000}}
mixture: {{shares: {{en: 1.0}}, parts: {{stage1: 40k tokens, stage2: 10k tokens}}, heldout: 4k tokens}}
flan: {{tasks: [bbc-title]}}
model: {{d_model: 32, num_heads: 2, kv_channels: 16, ffn: 96}}
runtime: {{train: {{workers: 1, checkpoint_every: 20 steps}}}}
benchmarks: [bbc-title]
evaluate: [stage3]
stages:
  stage1: {{batch: 8, budget: 150 steps, evaluate_every: 50 steps, heldout_batches: 1, data: {{length: 64}}}}
"""


@dataclass
class Trained:
    """What a run through the services left, and where they are."""

    stack: Stack
    output: str
    home: Path
    restarted_at: int

    def aws(self, service: str) -> Any:
        settings = self.stack.environment("prefect-worker")
        return boto3.client(
            service, endpoint_url=settings["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip

    def keys(self, bucket: str) -> list[str]:
        return [row["Key"] for row in self.aws("s3").list_objects_v2(Bucket=bucket).get("Contents", [])]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Of a JSON-lines file in the trained stage's output."""
        (key,) = [
            key for key in self.keys("openba") if key.startswith("store/stage1/") and key.endswith(f"/{name}")
        ]
        body = self.aws("s3").get_object(Bucket="openba", Key=key)["Body"].read()
        return [json.loads(line) for line in body.splitlines()]

    def ask(self, database: str, query: str) -> list[tuple[Any, ...]]:
        password, address = self.stack.secrets["POSTGRES_PASSWORD"], self.stack.address("postgres")
        connection = psycopg2.connect(f"postgresql://openba:{password}@{address}/{database}")
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()

    def dump(self, database: str) -> str:
        """All that the database holds, as text."""
        password = {"PGPASSWORD": self.stack.secrets["POSTGRES_PASSWORD"]}
        host, port = self.stack.address("postgres").split(":")
        command = [
            program("pg_dump"),
            "--host",
            host,
            "--port",
            port,
            "--username",
            "openba",
            "--data-only",
            database,
        ]
        return subprocess.run(
            command, env=os.environ | password, check=True, capture_output=True, text=True
        ).stdout


def http(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def restart_postgres(stack: Stack, home: Path, process: subprocess.Popen[str]) -> int:
    """After 20 steps of the stage the database goes away for two seconds. Returns the step it was at."""
    while process.poll() is None:
        for path in home.glob("work/stage1/*/metrics.jsonl"):
            if (done := path.read_text().count("\n")) > 20:
                postgres = stack.services["postgres"]
                postgres.process.send_signal(signal.SIGINT)  # at once; at SIGTERM it waits for its clients
                postgres.process.wait(10)
                postgres.stop()
                time.sleep(2)
                stack.postgres()
                stack.services["postgres"].wait()
                return done
        time.sleep(0.1)
    return 0


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    require_programs(*PROGRAMS)
    stack = Stack(root)
    try:
        stack.start()
        pipeline = tmp_path_factory.mktemp("services") / "services.yaml"
        pipeline.write_text(PIPELINE)
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("PREFECT_", "RAY_", "MLFLOW_", "OPENBA_"))
        }
        settings = kept | stack.environment("prefect-worker") | {"PYTHONPATH": str(root)}
        command = [sys.executable, "-m", "flows.cli", "run", str(pipeline), "--until", "stage1"]
        process = subprocess.Popen(
            command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        home = Path(settings["OPENBA_HOME"])
        restarted_at = restart_postgres(stack, home, process)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-4000:]
        yield Trained(stack, output, home, restarted_at)
    finally:
        stack.stop()


def test_the_output_is_in_the_object_store_alone(trained: Trained) -> None:
    stage1 = [key for key in trained.keys("openba") if key.startswith("store/stage1/")]
    assert {"manifest.json", "metrics.jsonl"} <= {Path(key).name for key in stage1}
    assert any(key.endswith(".safetensors") for key in stage1)
    assert not (trained.home / "store").exists()


def test_mlflow_keeps_its_runs_in_postgres_through_a_restart_of_it(trained: Trained) -> None:
    """Every step's loss is there once, also of the steps during which the database was away."""
    assert trained.restarted_at
    runs = trained.ask("mlflow", "SELECT name, status FROM runs")
    assert ("stage1", "FINISHED") in runs
    assert {status for _, status in runs} == {"FINISHED"}
    rows = trained.ask(
        "mlflow", "SELECT step FROM metrics JOIN runs USING (run_uuid) WHERE key = 'loss' AND name = 'stage1'"
    )
    assert sorted(step for (step,) in rows) == list(range(1, 151))


def test_a_run_has_at_most_60_metric_names(trained: Trained) -> None:
    counts = trained.ask(
        "mlflow", "SELECT name, count(DISTINCT key) FROM metrics JOIN runs USING (run_uuid) GROUP BY name"
    )
    assert max(count for _, count in counts) <= 60


def test_prefect_ends_its_run_though_the_database_was_away(trained: Trained) -> None:
    assert trained.ask("prefect", "SELECT state_type FROM flow_run") == [("COMPLETED",)]


def test_prefects_messages_go_through_redis(trained: Trained) -> None:
    client = redis.Redis(port=trained.stack.ports["redis"], password=trained.stack.secrets["REDIS_PASSWORD"])
    assert client.type("events") == b"stream"
    ((emitted,),) = trained.ask(
        "prefect", "SELECT count(*) FROM events WHERE event LIKE 'prefect.task-run.%'"
    )
    assert emitted > 0  # written by the background services, which got them there


def test_artifacts_of_mlflow_go_to_the_object_store(trained: Trained, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"http://{trained.stack.address('mlflow')}")
    (run,) = client.search_runs([client.get_experiment_by_name("openba-services").experiment_id],
                                "tags.\"openba.step\" = 'stage1'")  # fmt: skip
    (tmp_path / "note.txt").write_text("proof")
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    assert [key for key in trained.keys("mlflow") if key.endswith("note.txt")]
    assert run.data.tags["openba.uri"].startswith("s3://openba/store/stage1/")


def test_mlflow_answers_to_its_names_only(trained: Trained) -> None:
    """A service name as Host is a 403 unless it is allowed; compose's `mlflow:5000` is."""
    url = f"http://{trained.stack.address('mlflow')}/api/2.0/mlflow/experiments/search?max_results=1"
    assert http(url, Host="mlflow:5000")[0] == 200
    assert http(url, Host="elsewhere:5000")[0] == 403


def test_prefect_and_ray_want_to_know_who_asks(trained: Trained) -> None:
    assert http(f"http://{trained.stack.address('prefect-server')}/api/admin/version")[0] == 401
    assert http(f"http://{trained.stack.address('ray-head')}/api/jobs/")[0] == 401
    token = f"Bearer {trained.stack.secrets['RAY_TOKEN']}"
    assert http(f"http://{trained.stack.address('ray-head')}/api/jobs/", Authorization=token)[0] == 200


def test_everything_listens_on_loopback(trained: Trained) -> None:
    outside = set()
    for name, service in trained.stack.services.items():
        family = psutil.Process(service.process.pid)
        for process in [family, *family.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # one of Ray's idle ones has just ended
                listening = [s for s in process.net_connections("inet") if s.status == psutil.CONN_LISTEN]
                addresses = {ip_address(socket.laddr.ip.removeprefix("::ffff:")) for socket in listening}
                outside |= {(name, process.name(), str(at)) for at in addresses if not at.is_loopback}
    assert outside == set()


def test_no_secret_reaches_a_log_or_a_database(trained: Trained) -> None:
    """Neither parameters, tags and results, nor what the services and the run have written."""
    secrets = {name: value for name, value in trained.stack.secrets.items() if name != "LISTEN"}
    places = {f"database {name}": trained.dump(name) for name in ("mlflow", "prefect")}
    places |= {str(path): path.read_text(errors="replace") for path in trained.stack.folder.glob("*.log")}
    places |= {str(p): p.read_text(errors="replace") for p in (trained.stack.folder / "ray").rglob("*.log")}
    places["the run"] = trained.output
    assert [
        (name, place) for name, secret in secrets.items() for place, text in places.items() if secret in text
    ] == []


def ask_prometheus(trained: Trained, path: str, **parameters: str) -> Any:
    url = f"http://{trained.stack.address('prometheus')}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    status, text = http(url)
    assert status == 200, f"{parameters}: {text}"
    return json.loads(text)["data"]


def resolved(query: str) -> str:
    """A board's query as Grafana asks it with every variable at "All"."""
    query = re.sub(r"\$__(rate_)?interval|\$\{__(rate_)?interval\}", "1m", query)
    query = query.replace("$__range_s", "600").replace("$__range", "10m").replace("{global_filters}", "")
    query = re.sub(r"\[\$\{?\w+\}?\]", "[1m]", query)  # a variable that is a span of time
    return re.sub(r"\$\{?\w+(:\w+)?\}?", ".*", query)


def queries(board: dict[str, Any]) -> list[str]:
    panels = [p for panel in board["panels"] for p in (panel, *panel.get("panels", []))]
    return [resolved(target["expr"]) for panel in panels for target in panel.get("targets", [])]


def test_every_query_of_our_board_has_an_answer(trained: Trained, root: Path) -> None:
    """Asked over the time of the training, as Grafana does, of the Prometheus that scraped it."""
    board = json.loads((root / "infra" / "grafana" / "boards" / "training.json").read_text())
    now = time.time()
    span = {"start": str(now - 900), "end": str(now), "step": "1s"}
    empty = [
        q for q in queries(board) if not ask_prometheus(trained, "query_range", query=q, **span)["result"]
    ]
    assert empty == []
    for variable in board["templating"]["list"]:
        label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert label is not None
        series = ask_prometheus(trained, "series", **{"match[]": resolved(label[1])})
        assert all(row.get(label[2]) for row in series)
        assert series


def test_the_scraped_loss_is_the_trainings(trained: Trained) -> None:
    """Values over time are those of the log; the last one may have come after the last scrape."""
    logged = {round(row["loss"], 6) for row in trained.rows("metrics.jsonl")}
    now = time.time()
    query = 'ray_openba_loss{objective="all"}'
    (series,) = ask_prometheus(
        trained, "query_range", query=query, start=str(now - 900), end=str(now), step="1s"
    )["result"]
    scraped = {round(float(value), 6) for _, value in series["values"]}
    assert len(scraped) > 3
    assert scraped <= logged


def test_every_query_of_rays_boards_is_understood(trained: Trained) -> None:
    """Ray writes them when it starts, where compose's Grafana finds them."""
    boards = sorted((trained.stack.folder / "boards").glob("*.json"))
    assert {"train_grafana_dashboard.json", "default_grafana_dashboard.json"} <= {
        path.name for path in boards
    }
    asked = {query for path in boards for query in queries(json.loads(path.read_text()))}
    assert len(asked) > 100
    for query in asked:
        ask_prometheus(trained, "query", query=query)


def test_prometheus_understands_the_shipped_configuration(root: Path) -> None:
    require_programs("promtool")
    config = root / "infra" / "prometheus" / "prometheus.yaml"
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_prefects_page_has_progress_picture_table_and_links(trained: Trained) -> None:
    found = trained.ask("prefect", "SELECT key, type, data #>> '{}' FROM artifact_collection")
    artifacts = {key: (kind, data) for key, kind, data in found}
    assert artifacts["openba-services-stage1"][0] == "progress"
    assert float(artifacts["openba-services-stage1"][1]) == 100, trained.output
    kind, data = artifacts["openba-services-stage1-loss"]
    assert (kind, data[:26]) == ("image", "data:image/svg+xml;base64,")
    assert "stage1" in artifacts["openba-services-steps"][1]
    assert trained.stack.address("ray-head") in artifacts["openba-services-ray-dashboard"][1]
    assert trained.stack.address("mlflow") in artifacts["openba-services-mlflow-experiment"][1]


def test_mlflows_run_leads_to_rays_dashboard_and_has_its_nodes_figures(trained: Trained) -> None:
    tags = dict(
        trained.ask("mlflow", "SELECT key, value FROM tags JOIN runs USING (run_uuid) WHERE name = 'stage1'")
    )
    page = f"http://{trained.stack.address('ray-head')}/#/jobs/stage1-"
    assert tags["ray.job"].startswith(page)
    assert f"]({page}" in tags["mlflow.note.content"]
    keys = {
        key for (key,) in trained.ask("mlflow", "SELECT DISTINCT key FROM metrics WHERE key LIKE 'system/%'")
    }
    assert {
        "system/127.0.0.1/cpu_utilization_percentage",
        "system/127.0.0.1/system_memory_usage_percentage",
    } <= keys
