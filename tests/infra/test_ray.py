"""The cluster's launcher file, against the Ray that is installed. No cluster is started."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from openba.config import CONFIGS, load
from openba.recipes.runtime import PipelineRuntime

NODES = 4

# In a process of its own: Ray reads its token settings when it is first imported, and other tests
# of this process may want to set them.
ASK_RAY = """
import json, re, shlex, sys, yaml
from ray.autoscaler._private.util import prepare_config
from ray.scripts.scripts import start

cluster = yaml.safe_load(open(sys.argv[1]))
answer = {"node_types": list(prepare_config(cluster)["available_node_types"].values())}
for kind in ("head", "worker"):
    started = re.findall("ray start (.*)", " ".join(cluster[kind + "_start_ray_commands"]))
    answer[kind] = start.make_context("start", shlex.split(*started)).params
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def cluster(root: Path) -> dict[str, Any]:
    return yaml.safe_load((root / "infra" / "ray" / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def parsed(root: Path) -> dict[str, Any]:
    """The file as the launcher prepares it, and the options of each `ray start` as Ray reads them."""
    command = [sys.executable, "-c", ASK_RAY, root / "infra" / "ray" / "cluster.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def test_file_is_valid_for_the_launcher(cluster: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"worker_ips": ["10.0.0.11"]}, schema)


def test_launcher_keeps_every_node_up(parsed: dict[str, Any]) -> None:
    (node,) = parsed["node_types"]
    assert (node["min_workers"], node["max_workers"]) == (NODES, NODES)


def test_head_has_no_resources_and_the_nodes_are_the_papers(parsed: dict[str, Any]) -> None:
    head, node = parsed["head"], parsed["worker"]
    assert head["head"]
    assert (head["num_cpus"], head["num_gpus"]) == (0, 0)
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    runtime = load(CONFIGS / "runtime" / "paper.yaml", PipelineRuntime)
    assert NODES * node["num_gpus"] == runtime.devices == runtime.train.workers


def test_environment_of_the_nodes(cluster: dict[str, Any], tmp_path: Path) -> None:
    """The setup commands, run in an empty home, give what the start commands source."""

    def bash(command: str) -> str:
        home = {"HOME": str(tmp_path)}
        return subprocess.run(
            ["bash", "-c", command], env=home, check=True, capture_output=True, text=True
        ).stdout

    for command in [*cluster["setup_commands"], *cluster["setup_commands"]]:  # `ray up` may run twice
        bash(command)
    found = dict(line.split("=", 1) for line in bash("source ~/openba-ray.env && env").splitlines())
    assert found["PATH"].count(".venv/bin") == 1
    assert found["RAY_AUTH_MODE"] == "token"
    mounted = next(iter(cluster["file_mounts"]))
    assert found["RAY_AUTH_TOKEN_PATH"] == mounted.replace("~", str(tmp_path))
    assert found["NCCL_SOCKET_IFNAME"] == found["GLOO_SOCKET_IFNAME"]
    for kind in ("head", "worker"):
        assert all("source ~/openba-ray.env" in command for command in cluster[f"{kind}_start_ray_commands"])


def test_commands_are_valid_shell(cluster: dict[str, Any]) -> None:
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in cluster[key]:
            checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
            assert checked.stderr == ""


def test_readme_uses_the_clusters_address(
    cluster: dict[str, Any], parsed: dict[str, Any], root: Path
) -> None:
    readme = (root / "infra" / "ray" / "README.md").read_text()
    port = parsed["head"]["dashboard_port"]
    assert f"RAY_ADDRESS=http://{cluster['provider']['head_ip']}:{port}" in readme
