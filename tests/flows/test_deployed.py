"""A deployed flow's home: named by the worker's environment, never the worker's temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.exceptions import ParameterTypeError

from flows import deployed
from openba.errors import UserError
from tasks.graphs import read_pipeline, steps_of_evaluation, worker_home


@pytest.mark.parametrize("given", [None, "", "state"])
def test_a_deployed_flow_asks_for_an_absolute_home(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "any")
    monkeypatch.delenv("OPENBA_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("OPENBA_HOME", given)
    with pytest.raises(UserError, match="absolute path in the environment of the Prefect worker"):
        worker_home()
    monkeypatch.delenv("PREFECT__RUNTIME__DEPLOYMENT__ID")
    assert worker_home().root.is_absolute()


def test_a_deployed_flow_takes_an_absolute_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "any")
    monkeypatch.setenv("OPENBA_HOME", str(tmp_path))
    assert worker_home().root == tmp_path


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("build_data", {}),
        ("train_step", {"step": "stage1", "max_heldout_loss": 2.5}),
        ("evaluate_model", {"model": "stage3"}),
        ("promote_model", {"model": "stage3"}),
    ],
)
def test_every_flow_checks_its_parameters(name: str, parameters: dict[str, object]) -> None:
    """Prefect resolves the types of the parameters in the flow's module before it runs the flow."""
    flow = getattr(deployed, name)
    given = parameters | {"pipeline": "tiny", "overrides": ["stages.stage1.seed=2"]}
    assert flow.validate_parameters(given) == given
    with pytest.raises(ParameterTypeError):
        flow.validate_parameters(given | {"overrides": 3})


@pytest.mark.parametrize(("model", "baselines"), [("stage3", "baselines"), ("ner", "baselines-ner")])
def test_an_evaluation_comes_with_the_models_that_it_is_compared_with(model: str, baselines: str) -> None:
    graph = read_pipeline("tiny", None, strict=True)
    steps = steps_of_evaluation(graph, graph.step(f"evaluate-{model}"))
    names = {step.name for step in steps}
    assert {f"evaluate-{model}", model, baselines, "contamination"} <= names
    assert not {name for name in names if name.startswith("baselines")} - {baselines}
