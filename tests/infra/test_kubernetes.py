"""The chart: rendered by Helm's own engine, valid for Kubernetes and KubeRay, four nodes of eight A100."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from flows.cli import app
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


def render(root: Path, **values: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects that the chart makes with these values, by kind and name."""
    with helm_python.Chart.load(str(root / "infra" / "kubernetes" / "openba")) as chart:
        rendered = chart.render(values, name="paper", namespace="training")
    found = [each for text in rendered.values() for each in yaml.safe_load_all(text) if each]
    objects = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(objects) == len(found)
    return objects


@pytest.fixture(scope="module")
def objects(root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return render(
        root, serve={"model": "models:/openba-chat@champion"}, imagePullSecrets=[{"name": "registry"}]
    )


@pytest.fixture(scope="module")
def cluster(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    return objects["RayCluster", "paper"]


@pytest.fixture(scope="module")
def serve(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    return objects["Deployment", "paper-serve"]


@pytest.fixture(scope="module")
def job(root: Path) -> dict[str, Any]:
    pull = [{"name": "registry"}]
    return render(root, job={"pipeline": "tiny"}, imagePullSecrets=pull)["RayJob", "paper"]


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_helm_finds_no_fault(root: Path) -> None:
    found = helm_python.lint(str(root / "infra" / "kubernetes" / "openba"))
    assert found["errors"] == []
    assert [row["error"] for row in found["messages"]] == ["icon is recommended"]


def test_wrong_values_are_refused(root: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"image": {"head": "openba:latest"}}, {"workers": {"node": 3}},
        {"job": {"pipeline": "tiny; rm -rf /"}}, {"state": {"size": "20T"}}, {"serve": {"model": "/etc"}},
        {"network": {"operatorNamespace": "Ray"}}, {"serve": {"model": "models:/m@champion", "replica": 1}},
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


def test_other_objects_are_valid_for_kubernetes(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    plain = {key: each for key, each in objects.items() if key[0] != "RayCluster"}
    assert plain.keys() == {
        ("PersistentVolumeClaim", "openba-state"), ("Deployment", "paper-serve"), ("Service", "paper-serve"),
        ("NetworkPolicy", "paper-ray"), ("NetworkPolicy", "paper-serve"),
    }  # fmt: skip
    for each in plain.values():
        kubernetes_validate.validate(each, "1.37", strict=True)
    misspelt = objects["NetworkPolicy", "paper-ray"] | {"spec": {"podSelectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, "1.37", strict=True)


def test_every_pod_is_unprivileged_and_may_write_its_state(
    cluster: dict[str, Any], serve: dict[str, Any]
) -> None:
    """fsGroup lets user 1000 write to a fresh volume. A capability would have no effect for that user."""
    for template in [*pods(cluster["spec"]), serve["spec"]["template"]]:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"] == 1000
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"].keys() <= container["resources"]["limits"].keys()


def test_infiniband_checks_that_memory_can_be_locked(cluster: dict[str, Any], root: Path) -> None:
    (check,) = pods(cluster["spec"])[1]["spec"]["initContainers"]
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -l 64; {check['command'][-1]}"], capture_output=True, text=True
    )
    assert limited.returncode == 1
    assert "LimitMEMLOCK=infinity" in limited.stdout
    without = render(root, workers={"rdma": {"rdma/hca": None}})["RayCluster", "paper"]
    assert "initContainers" not in pods(without["spec"])[1]["spec"]


def test_the_state_is_shared_and_outlives_the_release(
    objects: dict[tuple[str, str], dict[str, Any]], root: Path
) -> None:
    claim = objects["PersistentVolumeClaim", "openba-state"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert ("PersistentVolumeClaim", "openba-state") not in render(root, state={"size": ""})


def test_only_named_pods_reach_rays_ports(
    objects: dict[tuple[str, str], dict[str, Any]], cluster: dict[str, Any]
) -> None:
    policy = objects["NetworkPolicy", "paper-ray"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    selected = policy["podSelector"]["matchLabels"].items()
    assert all(selected <= template["metadata"]["labels"].items() for template in pods(cluster["spec"]))
    assert all(rule["from"] for rule in policy["ingress"])
    (own,) = [rule for rule in policy["ingress"] if "ports" not in rule]
    assert own["from"] == [{"podSelector": {"matchLabels": policy["podSelector"]["matchLabels"]}}]
    assert {port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])} == {8265, 8080}


def test_serving_has_probes_a_key_and_devices(
    serve: dict[str, Any], objects: dict[tuple[str, str], dict[str, Any]], root: Path
) -> None:
    (container,) = serve["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    assert container["args"][:3] == ["openba", "serve", "models:/openba-chat@champion"]
    typer.main.get_command(app).commands["serve"].make_context("serve", container["args"][2:])  # type: ignore[attr-defined]
    key = next(env for env in container["env"] if env["name"] == "OPENBA_API_KEY")
    assert key["valueFrom"]["secretKeyRef"] == {"name": "openba-key", "key": "api_key"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith("-gpu")
    labels = serve["spec"]["template"]["metadata"]["labels"].items()
    assert objects["Service", "paper-serve"]["spec"]["selector"].items() <= labels
    on_cpu = render(root, serve={"model": "models:/m/3", "gpus": 0})["Deployment", "paper-serve"]
    (container,) = on_cpu["spec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert (container["image"][-4:], container["args"][-1]) == ("-cpu", "cpu")


def test_a_mistake_is_not_retried_on_another_cluster(job: dict[str, Any]) -> None:
    assert job["spec"]["backoffLimit"] == 0


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
