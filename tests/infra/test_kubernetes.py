"""The chart: rendered by Helm's own engine, valid for Kubernetes and KubeRay, four nodes of eight A100."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

from openba.config import CONFIGS, load
from openba.graph import find_pipeline
from openba.recipes.runtime import PipelineRuntime

# The fields of ray.io/v1 as KubeRay's API reference lists them (version 1.6), less what only its status has.
# Kubernetes drops what it does not know: a misspelt field would be lost without a word.
TEXT, FLAG, COUNT, MAP = (
    {"type": "string"},
    {"type": "boolean"},
    {"type": "integer", "minimum": 0},
    {"type": "object"},
)
TEXTS = {"type": "object", "additionalProperties": TEXT}


def closed(required: list[str], **fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": fields}


GROUP = {"rayStartParams": TEXTS, "template": MAP, "resources": TEXTS, "labels": TEXTS}
CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion=TEXT, suspend=FLAG, enableInTreeAutoscaling=FLAG, autoscalerOptions=MAP,
    headServiceAnnotations=TEXTS, managedBy=TEXT, gcsFaultToleranceOptions=MAP, upgradeStrategy=MAP,
    authOptions=closed(
        ["mode"], mode={"enum": ["token", "disabled"]}, secretName=TEXT, enableK8sTokenAuth=FLAG,
    ),
    headGroupSpec=closed(["template"], serviceType=TEXT, headService=MAP, enableIngress=FLAG, **GROUP),
    workerGroupSpecs={"type": "array", "items": closed(
        ["groupName", "minReplicas", "maxReplicas", "template"],
        groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT, suspend=FLAG,
        idleTimeoutSeconds=COUNT, scaleStrategy=MAP, **GROUP,
    )},
)  # fmt: skip
JOB = closed(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT, runtimeEnvYAML=TEXT, jobId=TEXT, metadata=TEXTS, clusterSelector=TEXTS,
    submitterPodTemplate=MAP, submitterConfig=MAP,
    managedBy=TEXT, deletionStrategy=MAP, entrypointResources=TEXT, suspend=FLAG,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointNumCpus={"type": "number"}, entrypointNumGpus={"type": "number"}, backoffLimit=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1}, ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG, rayClusterSpec=CLUSTER,
)  # fmt: skip


def render(root: Path, **values: Any) -> dict[str, Any]:
    """The one object that the chart makes with these values."""
    with helm_python.Chart.load(str(root / "infra" / "kubernetes" / "openba")) as chart:
        rendered = chart.render(values, name="paper", namespace="training")
    (found,) = filter(None, map(yaml.safe_load, rendered.values()))
    return found


@pytest.fixture(scope="module")
def cluster(root: Path) -> dict[str, Any]:
    return render(root)


@pytest.fixture(scope="module")
def job(root: Path) -> dict[str, Any]:
    return render(root, job={"pipeline": "tiny"})


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_helm_finds_no_fault(root: Path) -> None:
    found = helm_python.lint(str(root / "infra" / "kubernetes" / "openba"))
    assert found["errors"] == []
    assert [row["error"] for row in found["messages"]] == ["icon is recommended"]


def test_wrong_values_are_refused(root: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"image": {"head": "openba:latest"}}, {"workers": {"node": 3}},
        {"job": {"pipeline": "tiny; rm -rf /"}},
    ]  # fmt: skip
    for values in wrong:
        with pytest.raises(helm_python.HelmError):
            render(root, **values)


def test_objects_are_kuberays(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    assert (cluster["apiVersion"], cluster["kind"], job["kind"]) == ("ray.io/v1", "RayCluster", "RayJob")
    jsonschema.validate(cluster["spec"], CLUSTER)
    jsonschema.validate(job["spec"], JOB)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster["spec"] | {"authOption": {}}, CLUSTER)
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_pods_are_valid_for_kubernetes(cluster: dict[str, Any]) -> None:
    for number, template in enumerate(pods(cluster["spec"])):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{number}"} | template["metadata"],
        }
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, "1.37", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            pod | {"spec": template["spec"] | {"nodeSelectors": {}}}, "1.37", strict=True
        )


def test_the_papers_cluster(cluster: dict[str, Any]) -> None:
    """Four whole nodes of eight, a head that trains nothing; each container gets its devices and no more."""
    (nodes,) = cluster["spec"]["workerGroupSpecs"]
    assert (nodes["replicas"], nodes["minReplicas"], nodes["maxReplicas"]) == (4, 4, 4)
    (worker,) = nodes["template"]["spec"]["containers"]
    assert (
        worker["resources"]["requests"]["nvidia.com/gpu"] == worker["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert nodes["rayStartParams"]["num-gpus"] == worker["resources"]["limits"]["nvidia.com/gpu"]
    runtime = load(CONFIGS / "runtime" / "paper.yaml", PipelineRuntime)
    assert 4 * int(nodes["rayStartParams"]["num-gpus"]) == runtime.devices
    head = cluster["spec"]["headGroupSpec"]["rayStartParams"]
    assert (head["num-cpus"], head["num-gpus"]) == ("0", "0")


def test_token_and_secrets_come_from_outside(cluster: dict[str, Any]) -> None:
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "openba-ray"}
    for template in pods(cluster["spec"]):
        (container,) = template["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "openba"}}]
        assert not [env for env in container["env"] if "KEY" in env["name"] or "PASSWORD" in env["name"]]
        assert container["securityContext"]["runAsNonRoot"]
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_a_job_runs_a_pipeline_and_ends_its_cluster(job: dict[str, Any]) -> None:
    words = job["spec"]["entrypoint"].split()
    command, name = words[words.index("openba") :][:2], words[words.index("run") + 1]
    assert command == ["openba", "run"]
    assert find_pipeline(name).exists()
    assert job["spec"]["shutdownAfterJobFinishes"]


def test_versions_are_those_of_the_rest(root: Path, versions: dict[str, str], locked: dict[str, str]) -> None:
    values = yaml.safe_load((root / "infra" / "kubernetes" / "openba" / "values.yaml").read_text())
    assert values["image"] == {"head": versions["OPENBA_IMAGE"], "worker": versions["OPENBA_GPU_IMAGE"]}
    assert values["rayVersion"] == locked["ray"]
