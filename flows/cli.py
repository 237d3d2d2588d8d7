"""The `openba` command line. Owns arguments, exit codes and printing; `tasks` and `openba` do the work.

Commands import what they need when they run, so that `openba plan` answers in a second.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows import data, evaluate, export, serve
from openba.artifacts import Step, drift
from openba.config import find_config, flatten, load
from openba.errors import run_command
from openba.graph import Pipeline
from openba.home import Home, prepare_environment
from openba.json_types import JsonObject
from openba.plan import LEGEND, MT5_IDS, remarks
from openba.plan import plan as make_plan
from openba.recipes.model import ModelRecipe
from openba.recipes.train import TrainStep
from openba.units import human
from tasks.graphs import read_pipeline
from tasks.models import MODEL_FOLDER

if TYPE_CHECKING:
    from openba.report.leaderboard import Entry
    from tasks.registry import Registry

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
# Wide enough for the table of `openba plan`, which would otherwise be folded at 80 in a pipe.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)

PipelineName = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="Name in configs/pipeline, or a YAML file.")
]
PipelineOption = Annotated[
    str, typer.Option("--pipeline", "-p", help="Name in configs/pipeline, or a YAML file.")
]
StepName = Annotated[
    str, typer.Argument(help="A step of the pipeline, such as stage1; `openba plan` lists them.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, such as stages.stage2.optim.lr=1e-3.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    # Without it the interpreter collects garbage in all of MLflow once more before it ends: 0.7 s.
    atexit.register(gc.freeze)
    prepare_environment()
    exit_code = run_command(lambda: app(standalone_mode=False))  # 130 after Ctrl-C
    if exit_code == 130:
        print(
            "openba: stopped; complete outputs are kept, run the command again to continue", file=sys.stderr
        )
    sys.exit(exit_code)


@app.command()
def run(
    pipeline: PipelineName = "tiny",
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help="Build only this step and the steps it needs.")] = None,
) -> None:
    """Run a pipeline. Steps that are built already are reused."""
    home = Home.from_environment()
    # Bad input ends the command here, before any server is started.
    graph = read_pipeline(pipeline, overrides, strict=True)
    graph.wanted(until)
    home.require_writable()
    from tasks.services import PrefectServer

    prefect_server = PrefectServer(home, graph.config.runtime)
    try:
        from flows.pipeline import openba_pipeline
        from tasks.tracking import make_tables

        if graph.config.runtime.tracker == "mlflow":
            make_tables(home)  # takes a second; Prefect's server starts meanwhile
        prefect_server.wait()
        console.print(f"Prefect  {prefect_server.url.removesuffix('/api')}")
        openba_pipeline(pipeline, overrides, until)
    finally:
        prefect_server.stop()
    _print_links(home)


@app.command()
def sweep(
    pipeline: PipelineName,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            help="A setting with one value, or with several to try: stages.stage1.optim.lr=1e-3,3e-3.",
        ),
    ],
    until: Annotated[
        str | None,
        typer.Option(help="The training whose held-out loss is compared; by default the last stage."),
    ] = None,
) -> None:
    """Train with every combination of the settings' values and compare the held-out losses."""
    from openba.sweep import make_trials
    from tasks.services import PrefectServer

    home = Home.from_environment()
    trials = make_trials(pipeline, settings, until)
    server = PrefectServer(home, trials[0].pipeline.config.runtime)
    try:
        from flows.sweep import sweep_flow
        from tasks.tracking import make_tables

        if trials[0].pipeline.config.runtime.tracker == "mlflow":
            make_tables(home)
        server.wait()
        sweep_flow(pipeline, settings, until)
    finally:
        server.stop()


@app.command()
def plan(
    pipeline: PipelineName = "tiny",
    overrides: Overrides = None,
    as_json: Json = False,
    model: Annotated[
        str | None, typer.Option(help="Only print the parameters of this model of configs/model.")
    ] = None,
) -> None:
    """Print what a run would build and cost: missing steps, tokens, FLOPs, hours, memory, kWh and tCO2eq."""
    if model is not None:
        _print_parameters(model, as_json)
        return
    plan_facts = make_plan(read_pipeline(pipeline, overrides), Home.from_environment().store)
    if as_json:
        print(json.dumps(plan_facts, indent=1))
    else:
        _print_plan(plan_facts)


@app.command()
def show(step: StepName, pipeline: PipelineOption = "tiny", overrides: Overrides = None) -> None:
    """Print a step's key, inputs, output folder and configuration, with the file that set each value."""
    graph = read_pipeline(pipeline, overrides)
    chosen_step = graph.step(step)
    console.print(f"{chosen_step.key}", style="bold")
    store = Home.from_environment().store
    is_built = store.manifest(chosen_step) is not None
    console.print(f"  output: {store.uri(chosen_step)}{'' if is_built else ' (not built)'}", markup=False)
    if is_built and isinstance(chosen_step.recipe, TrainStep):
        console.print(f"  model: {store.uri(chosen_step)}/{MODEL_FOLDER}", markup=False)
    for input_name, parent in chosen_step.inputs.items():
        console.print(f"  input {input_name}: {parent.key}", markup=False)
    for key, value, origin in _resolved(chosen_step, graph):
        console.print(f"  {key}: {value}   ({origin})", markup=False)


@app.command()
def explain(step: StepName, pipeline: PipelineOption = "tiny", overrides: Overrides = None) -> None:
    """Print why a step would be built again: each field that differs from its newest build."""
    graph = read_pipeline(pipeline, overrides)
    store = Home.from_environment().store
    chosen_step = graph.step(step)
    if store.manifest(chosen_step):
        console.print(f"{chosen_step.key}: built; it would be reused", markup=False)
        return
    differences = drift(chosen_step, store)
    if not differences:
        reason = "its output was lost or cut short" if store.siblings(chosen_step.name) else "never built"
        console.print(f"{chosen_step.key}: {reason}; it would be built", markup=False)
    for key, (old_value, new_value) in differences.items():
        console.print(f"{chosen_step.name}: {key}: {old_value} -> {new_value}", markup=False)


@app.command()
def doctor() -> None:
    """Check versions, disk, memory, ports and servers. The exit code is 1 if a run could not work."""
    from tasks.doctor import examine

    checks = examine(Home.from_environment())
    for check in checks:
        state_mark = {True: "ok  ", None: "warn", False: "FAIL"}[check.ok]
        remedy_text = "" if check.ok else f"  -> {check.remedy}"
        console.print(f"{state_mark} {check.what}: {check.observed}{remedy_text}", markup=False)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="A registered name, such as openba-chat.")],
    reason: Annotated[str, typer.Option(help="The reason; it is written to the promotion log.")],
    pipeline: PipelineOption = "tiny",
) -> None:
    """Restore the previous champion. No later run promotes the withdrawn version again."""
    withdrawn_version, restored_version = _registry(pipeline).rollback(model, reason)
    console.print(
        f"{model}: champion was version {withdrawn_version}, is version {restored_version}", markup=False
    )


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="A registered name, such as openba-chat.")],
    version: Annotated[str, typer.Argument(help="The version in the registry, such as 3.")],
    reason: Annotated[str, typer.Option(help="Who decided and why; it is written to the promotion log.")],
    pipeline: PipelineOption = "tiny",
) -> None:
    """Make a version champion by hand, without the gate; also one that was rolled back or rejected."""
    _registry(pipeline).promote(model, version, reason)
    console.print(f"{model}: champion is version {version}", markup=False)


def _registry(pipeline: str) -> Registry:
    """Return the registry of a pipeline's models."""
    from tasks.registry import Registry
    from tasks.tracking import Tracking

    home = Home.from_environment()
    graph = read_pipeline(pipeline)
    return Registry(Tracking(home, graph.config.name, ""), home.store, home.promotions, graph)


@app.command()
def report() -> None:
    """Print a summary of the last run and the path of its report."""
    from openba.report.leaderboard import read_report

    report_folder = Home.from_environment().report
    report_facts = read_report(report_folder / "report.json")
    states = [row["state"] for row in report_facts["steps"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    console.print(f"{report_facts['pipeline']}: {counts} in {report_facts['seconds']:.0f} s", markup=False)
    for row in report_facts["evaluations"]:
        scores = ", ".join(
            f"{name} {value:.1f}" for name, value in row["scores"].items() if value is not None
        )
        console.print(f"  {row['model']:<12} {row['benchmark']:<18} {scores}  (n={row['n']})", markup=False)
    console.print(str(report_folder / "report.html"), markup=False)


@app.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="The OPENBA_HOME of each run, or its report.json.")],
    as_json: Json = False,
) -> None:
    """Rank runs by the score that their pipeline's `target` names, with their cost and planned cost."""
    from openba.report.leaderboard import rank_runs

    entries = rank_runs(runs)
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    ranking_table = Table(
        "score", "± standard error", "n", "pipeline", "size", "parameters", "tokens", "device h", "of plan",
        "kWh", "price", "commit", "run", box=None,
    )  # fmt: skip
    for entry in entries:
        ranking_table.add_row(*_leaderboard_cells(entry))
    console.print(entries[0]["target"], style="bold", markup=False)
    console.print(ranking_table)


def _leaderboard_cells(entry: Entry) -> list[str]:
    planned_hours = entry["planned_device_hours"]
    return [
        f"{entry['score']:.1f}",
        f"{entry['stderr']:.1f}",
        str(entry["n"]),
        entry["pipeline"],
        "" if entry["size"] is None else str(entry["size"]),
        human(entry["parameters"]),
        human(entry["tokens"]),
        f"{entry['device_hours']:,.3g}",
        f"{entry['device_hours'] / planned_hours:.0%}" if planned_hours else "",
        f"{entry['kwh']:,.3g}",
        "" if entry["money"] is None else f"{entry['money']:,.2f}",
        entry["commit"],
        entry["run"],
    ]


@app.command()
def ui(pipeline: PipelineName = "tiny") -> None:
    """Serve the Prefect and MLflow pages of past runs until Ctrl-C is pressed."""
    from tasks.ui import serve

    serve(read_pipeline(pipeline), Home.from_environment())


# Last: `openba --help` lists commands in this order, and a newcomer looks for `run` first.
app.command("eval")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("judge")(evaluate.judge)
app.command("serve")(serve.serve)
app.command("export")(export.export)


def _print_parameters(model_name: str, as_json: bool) -> None:
    """Print the exact parameter count by part of the model, with the mT5 vocabulary."""
    from openba.accounting.count import count_parameters

    part_counts = count_parameters(load(find_config("model", model_name), ModelRecipe), MT5_IDS)
    if as_json:
        print(json.dumps(part_counts, indent=1))
        return
    for part_name, parameter_count in part_counts.items():
        console.print(f"{part_name:<10} {parameter_count:>17,}", markup=False)


def _resolved(step: Step, graph: Pipeline) -> list[tuple[str, Any, str]]:
    rows = []
    for recipe_key, value in flatten(step.recipe.model_dump(mode="json")).items():
        config_key = _place(step.config, recipe_key, graph)
        rows.append((recipe_key, value, graph.files.set_by(config_key)))
    return rows


def _place(section: str, recipe_key: str, graph: Pipeline) -> str:
    """Return the key of the pipeline's config that sets a key of a step's recipe."""
    if recipe_key.startswith("model."):  # a training's model has a section of its own
        return recipe_key
    if section == "clean":  # a key of sources.NAME: the pipeline's filters, or the source's own
        _, source_name, *rest = recipe_key.split(".", 2)
        is_shared = graph.config.sources[source_name].clean is True
        return ".".join(["clean", *rest] if is_shared else ["sources", source_name, "clean", *rest])
    return f"{section}.{recipe_key.removeprefix('train.').removeprefix('source.').removeprefix('task.')}"


def _print_plan(planned: JsonObject) -> None:
    step_table = Table(
        "step", "state", "steps", "tokens", "FLOPs", "real", "hardware", "device h", "kWh", "tCO2eq",
        "GiB/device", box=None,
    )  # fmt: skip
    for row in planned["steps"]:
        training = row.get("training")
        training_cells = _training_cells(training) if training else [""] * 9
        step_table.add_row(f"{row['name']}@{row['fingerprint']}", row["state"], *training_cells)
    console.print(step_table)
    console.print(LEGEND, markup=False)
    for remark, names in remarks(planned).items():
        console.print(f"{', '.join(names)}: {remark}", markup=False)
    if planned["mixture"]:
        console.print(_mixture_table(planned["mixture"]))
    plan_total = planned["total"]
    amount_text = f"{human(plan_total['tokens'])} tokens, {plan_total['flops']:.3g} FLOPs"
    amount_text += f", {plan_total['gpu_hours']:,.3g} device hours"
    device_text = f"{planned['workers']} of {planned['devices']} x {planned['device']}"
    duration_text = f"{plan_total['wall_hours']:,.3g} h on {device_text}"
    energy_text = f"{plan_total['kwh']:,.3g} kWh, {plan_total['tco2eq']:.3g} tCO2eq (paper's method)"
    money_text = "" if plan_total["money"] is None else f", {plan_total['money']:,.2f} at your price"
    console.print(f"total: {amount_text} ({duration_text}), {energy_text}{money_text}", markup=False)
    missing_steps = [row for row in planned["steps"] if row["state"] == "miss"]
    missing_hours = sum(row["training"]["gpu_hours"] for row in missing_steps if "training" in row)
    console.print(
        f"to build: {len(missing_steps)} of {len(planned['steps'])} steps, {missing_hours:,.3g} device hours",
        markup=False,
    )


def _mixture_table(groups: list[JsonObject]) -> Table:
    table = Table("mixture", "share", *groups[0]["tokens"], "epochs", box=None)
    for group in groups:
        epochs = f"up to {group['most_epochs']:g}" if group["epochs"] is None else f"{group['epochs']:.3g}"
        token_counts = [human(count) for count in group["tokens"].values()]
        table.add_row(group["group"], f"{group['share']:.1%}", *token_counts, epochs)
    return table


def _training_cells(training: JsonObject) -> list[str]:
    chosen_memory = next(row for row in training["memory"] if row["chosen"])
    fit_note = "" if chosen_memory["fits"] else " does not fit"
    return [
        f"{training['steps']:,}",
        human(training["tokens"]),
        f"{training['flops']:.3g}",
        "?" if training["flops_useful"] is None else f"{training['flops_useful']:.3g}",
        f"{training['flops_hardware_padded']:.3g}",
        f"{training['gpu_hours']:,.3g}",
        f"{training['kwh']:,.3g}",
        f"{training['tco2eq']:.3g}",
        f"{chosen_memory['total'] / 2**30:.1f}{fit_note}",
    ]


def _print_links(home: Home) -> None:
    report_facts = json.loads((home.report / "report.json").read_text(encoding="utf-8"))
    for label, link_target in report_facts["links"].items():
        console.print(f"{label:<18} {link_target}", markup=False)


if __name__ == "__main__":
    main()
