"""The `openba` command. Owns arguments, exit codes and printing; what is done stands elsewhere.

Heavy imports are inside the commands: `openba plan` answers in a second.
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
from flows.graphs import read_pipeline
from openba.artifacts import Step, drift
from openba.config import flatten, load
from openba.errors import UserError, run_command
from openba.graph import Pipeline, find_config
from openba.home import Home, prepare_environment
from openba.json_types import JsonObject
from openba.plan import MT5_IDS
from openba.plan import plan as make_plan
from openba.recipes.model import ModelRecipe
from openba.units import human

if TYPE_CHECKING:
    from openba.report.leaderboard import Entry
    from tasks.registry import Registry

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.command("eval")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("judge")(evaluate.judge)
app.command("serve")(serve.serve)
app.command("export")(export.export)
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)

PipelineName = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="Name in configs/pipeline, or a YAML file.")
]
PipelineOption = Annotated[
    str, typer.Option("--pipeline", "-p", help="Name in configs/pipeline, or a YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, such as stages.stage2.optim.lr=1e-3.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command line: a user's mistake is one line on stderr and exit code 2."""
    atexit.register(gc.freeze)  # else the interpreter walks all of MLflow once more before it ends: 0.7 s
    prepare_environment()
    code = run_command(lambda: app(standalone_mode=False))  # 130 after Ctrl-C
    if code == 130:
        print("openba: stopped; what was built is kept, run again to go on", file=sys.stderr)
    sys.exit(code)


@app.command()
def run(
    pipeline: PipelineName = "tiny",
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help="Build only what this step needs.")] = None,
) -> None:
    """Run a pipeline; what is built already is reused."""
    home = Home.from_environment()
    graph = read_pipeline(pipeline, overrides, strict=True)  # bad input ends here, before any server
    graph.wanted(until)
    home.require_writable()
    from tasks.services import PrefectServer

    server = PrefectServer(home, graph.config.runtime)
    try:
        from flows.pipeline import openba_pipeline
        from tasks.tracking import make_tables

        if graph.config.runtime.tracker == "mlflow":
            make_tables(home)  # while Prefect's server makes its own
        server.wait()
        console.print(f"Prefect  {server.url.removesuffix('/api')}")
        openba_pipeline(pipeline, overrides, until)
    finally:
        server.stop()
    _print_links(home)


@app.command()
def sweep(
    pipeline: PipelineName,
    settings: Annotated[
        list[str], typer.Option("--set", help="A value, or several to try: stages.stage1.optim.lr=1e-3,3e-3.")
    ],
    until: Annotated[
        str | None, typer.Option(help="The training whose held-out loss is compared; the last stage if none.")
    ] = None,
) -> None:
    """Train with every combination of several settings' values, and compare the held-out loss."""
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
    model: Annotated[str | None, typer.Option(help="Only count this model of configs/model.")] = None,
) -> None:
    """Show what a run would do and cost: missing steps, tokens, FLOPs, hours, memory, kWh, tCO2eq."""
    if model is not None:
        _print_parameters(model, as_json)
        return
    planned = make_plan(read_pipeline(pipeline, overrides), Home.from_environment().store)
    if as_json:
        print(json.dumps(planned, indent=1))
    else:
        _print_plan(planned)


@app.command()
def show(step: str, pipeline: PipelineOption = "tiny", overrides: Overrides = None) -> None:
    """Print a step's resolved config and which file set each key."""
    graph = read_pipeline(pipeline, overrides)
    chosen_step = graph.step(step)
    console.print(f"{chosen_step.key}", style="bold")
    for key, parent in chosen_step.inputs.items():
        console.print(f"  input {key}: {parent.key}", markup=False)
    for key, value, origin in _resolved(chosen_step, graph):
        console.print(f"  {key}: {value}   ({origin})", markup=False)


@app.command()
def explain(step: str, pipeline: PipelineOption = "tiny", overrides: Overrides = None) -> None:
    """Show why a step would be rebuilt, as a field diff against its newest build."""
    graph = read_pipeline(pipeline, overrides)
    store = Home.from_environment().store
    chosen_step = graph.step(step)
    if store.manifest(chosen_step):
        console.print(f"{chosen_step.key}: built; it would be reused", markup=False)
        return
    differences = drift(chosen_step, store)
    if not differences:
        again = "its output was lost or cut short" if store.siblings(chosen_step.name) else "never built"
        console.print(f"{chosen_step.key}: {again}; it would be built", markup=False)
    for key, (old, new) in differences.items():
        console.print(f"{chosen_step.name}: {key}: {old} -> {new}", markup=False)


@app.command()
def doctor() -> None:
    """Check versions, disk, memory and ports; exit code 1 if a run could not work."""
    from tasks.doctor import examine

    checks = examine(Home.from_environment())
    for check in checks:
        mark = {True: "ok  ", None: "warn", False: "FAIL"}[check.ok]
        remedy = "" if check.ok else f"  -> {check.remedy}"
        console.print(f"{mark} {check.what}: {check.observed}{remedy}", markup=False)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="A registered name, such as openba-chat.")],
    reason: Annotated[str, typer.Option(help="Why; goes to the promotion log.")],
    pipeline: PipelineOption = "tiny",
) -> None:
    """Restore the previous champion; no later run promotes the present one again."""
    present, earlier = _registry(pipeline).rollback(model, reason)
    console.print(f"{model}: champion was version {present}, is version {earlier}", markup=False)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="A registered name, such as openba-chat.")],
    version: Annotated[str, typer.Argument(help="Its version in the registry.")],
    reason: Annotated[str, typer.Option(help="Who says so and why; goes to the promotion log.")],
    pipeline: PipelineOption = "tiny",
) -> None:
    """Make a version champion by hand, also one that was rolled back or rejected; the gate is not asked."""
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
    """Print a summary of the last run and where its report is."""
    folder = Home.from_environment().report
    if not (folder / "report.json").exists():
        raise UserError(f"{folder / 'report.json'}: no report yet; `openba run` writes it")
    written = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    states = [row["state"] for row in written["steps"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    console.print(f"{written['pipeline']}: {counts} in {written['seconds']:.0f} s", markup=False)
    for row in written["evaluations"]:
        scores = ", ".join(
            f"{name} {value:.1f}" for name, value in row["scores"].items() if value is not None
        )
        console.print(f"  {row['model']:<12} {row['benchmark']:<18} {scores}  (n={row['n']})", markup=False)
    console.print(str(folder / "report.html"), markup=False)


@app.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="OPENBA_HOME of each run, or its report.json.")],
    as_json: Json = False,
) -> None:
    """Rank runs by the score that their pipeline fixes, with what they cost and were planned to cost."""
    from openba.report.leaderboard import rank_runs

    entries = rank_runs(runs)
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    table = Table(
        "score", "± standard error", "n", "pipeline", "size", "parameters", "tokens", "device h", "of plan",
        "kWh", "price", "commit", "run", box=None,
    )  # fmt: skip
    for entry in entries:
        table.add_row(*_leaderboard_cells(entry))
    console.print(entries[0]["target"], style="bold", markup=False)
    console.print(table)


def _leaderboard_cells(entry: Entry) -> list[str]:
    planned = entry["planned_device_hours"]
    return [
        f"{entry['score']:.1f}",
        f"{entry['stderr']:.1f}",
        str(entry["n"]),
        entry["pipeline"],
        "" if entry["size"] is None else str(entry["size"]),
        human(entry["parameters"]),
        human(entry["tokens"]),
        f"{entry['device_hours']:,.3g}",
        f"{entry['device_hours'] / planned:.0%}" if planned else "",
        f"{entry['kwh']:,.3g}",
        "" if entry["money"] is None else f"{entry['money']:,.2f}",
        entry["commit"],
        entry["run"],
    ]


@app.command()
def ui(pipeline: PipelineName = "tiny") -> None:
    """Serve the Prefect and MLflow pages of past runs until Ctrl-C."""
    from tasks.ui import serve

    serve(read_pipeline(pipeline), Home.from_environment())


def _print_parameters(name: str, as_json: bool) -> None:
    """Exact parameters by part, with the mT5 vocabulary."""
    from openba.accounting.count import count_parameters

    counted = count_parameters(load(find_config("model", name), ModelRecipe), MT5_IDS)
    if as_json:
        print(json.dumps(counted, indent=1))
        return
    for part, number in counted.items():
        console.print(f"{part:<10} {number:>17,}", markup=False)


def _resolved(step: Step, graph: Pipeline) -> list[tuple[str, Any, str]]:
    rows = []
    for key, value in flatten(step.recipe.model_dump(mode="json")).items():
        config_key = _place(step.config, key, graph)
        rows.append((key, value, graph.files.set_by(config_key)))
    return rows


def _place(config: str, key: str, graph: Pipeline) -> str:
    """Return the place of a recipe's key in the pipeline's config; a training's model has its own section."""
    if key.startswith("model."):
        return key
    if config == "clean":  # a key of sources.NAME: the pipeline's filters, or the source's own
        _, name, *rest = key.split(".", 2)
        shared = graph.config.sources[name].clean is True
        return ".".join(["clean", *rest] if shared else ["sources", name, "clean", *rest])
    return f"{config}.{key.removeprefix('train.').removeprefix('source.').removeprefix('task.')}"


def _print_plan(planned: JsonObject) -> None:
    table = Table(
        "step", "state", "steps", "tokens", "FLOPs", "real", "hardware", "device h", "kWh", "tCO2eq",
        "GiB/device", box=None,
    )  # fmt: skip
    for row in planned["steps"]:
        training = row.get("training")
        cells = _training_cells(training) if training else [""] * 9
        table.add_row(f"{row['name']}@{row['fingerprint']}", row["state"], *cells)
    console.print(table)
    for row in planned["steps"]:
        for line in row.get("clipped", []):
            console.print(f"note: {row['name']}: {line}", markup=False)
    if planned["mixture"]:
        console.print(_mixture_table(planned["mixture"]))
    total = planned["total"]
    spent = (
        f"{human(total['tokens'])} tokens, {total['flops']:.3g} FLOPs, {total['gpu_hours']:,.3g} device hours"
    )
    devices = f"{planned['workers']} of {planned['devices']} x {planned['device']}"
    where = f"{total['wall_hours']:,.3g} h on {devices}"
    energy = f"{total['kwh']:,.3g} kWh, {total['tco2eq']:.3g} tCO2eq (paper's method)"
    money = "" if total["money"] is None else f", {total['money']:,.2f} at your price"
    console.print(f"total: {spent} ({where}), {energy}{money}", markup=False)


def _mixture_table(groups: list[JsonObject]) -> Table:
    table = Table("mixture", "share", *groups[0]["tokens"], "epochs", box=None)
    for row in groups:
        epochs = f"up to {row['most_epochs']:g}" if row["epochs"] is None else f"{row['epochs']:.3g}"
        tokens = [human(count) for count in row["tokens"].values()]
        table.add_row(row["group"], f"{row['share']:.1%}", *tokens, epochs)
    return table


def _training_cells(training: JsonObject) -> list[str]:
    memory = next(row for row in training["memory"] if row["chosen"])
    fits = "" if memory["fits"] else " does not fit"
    return [
        f"{training['steps']:,}",
        human(training["tokens"]),
        f"{training['flops']:.3g}",
        "?" if training["flops_useful"] is None else f"{training['flops_useful']:.3g}",
        f"{training['flops_hardware_padded']:.3g}",
        f"{training['gpu_hours']:,.3g}",
        f"{training['kwh']:,.3g}",
        f"{training['tco2eq']:.3g}",
        f"{memory['total'] / 2**30:.1f}{fits}",
    ]


def _print_links(home: Home) -> None:
    written = json.loads((home.report / "report.json").read_text(encoding="utf-8"))
    for label, where in written["links"].items():
        console.print(f"{label:<18} {where}", markup=False)


if __name__ == "__main__":
    main()
