"""`openba serve`: serve a model over HTTP. Owns arguments.

`tasks/serve.py` listens, `openba/serve` answers.
"""

from __future__ import annotations

from typing import Annotated

import typer

from openba.home import Home


def serve(
    model: Annotated[str, typer.Argument(help="Folder of a model, or models:/NAME@ALIAS of the registry.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback needs OPENBA_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    device: Annotated[
        str, typer.Option(help="Device of the model in PyTorch's notation, such as cuda:0.")
    ] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of PyTorch on the CPU; by default PyTorch chooses.")
    ] = None,
    rows: Annotated[
        int,
        typer.Option(min=1, help="Largest number of answers decoded at a time, one row of the batch each."),
    ] = 32,
    queue: Annotated[
        int,
        typer.Option(
            min=0,
            help="Largest number of answers that wait for a free row; more are refused with status 429.",
        ),
    ] = 256,
    body: Annotated[int, typer.Option(min=1024, help="Largest size of a request body in bytes.")] = 2**20,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds within which a request must have arrived.")
    ] = 10.0,
    answer: Annotated[
        float, typer.Option(min=0.1, help="Seconds within which an answer must be complete.")
    ] = 300.0,
    poll: Annotated[
        float, typer.Option(min=0.1, help="Seconds between checks whether the alias names another version.")
    ] = 5.0,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER or NAME=models:/... of an adapter over the model; may be repeated."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Engine that decodes: openba or ctranslate2.")] = "openba",
    quantization: Annotated[
        str, typer.Option(help="Number format of ctranslate2, as of export.")
    ] = "float32",
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Run on the Ray cluster that RAY_ADDRESS names.")
    ] = False,
    replicas: Annotated[
        int, typer.Option(min=0, help="Number of replicas on the cluster; 0 ends the deployment.")
    ] = 1,
) -> None:
    """Serve a model with OpenAI's API, a chat page, /health and /metrics, until Ctrl-C is pressed."""
    import torch

    from openba.serve.limits import Limits
    from tasks import serve as process

    adapters = process.adapters_by_name(adapter or [], on_cluster=cluster)
    choice = process.engine_of(engine, quantization, with_adapters=bool(adapters), on_cluster=cluster)
    home = Home.from_environment()
    limits = Limits(
        max_rows=rows, max_queued=queue, max_body_bytes=body, client_timeout=patience, answer_timeout=answer
    )
    if cluster:
        from tasks.serve_cluster import deploy

        deploy(
            model, home, limits, replicas=replicas, host=host, port=port, device=device, poll_seconds=poll,
            threads=threads or 1,
        )  # fmt: skip
        return
    if threads:
        torch.set_num_threads(threads)
    process.serve(
        model, home, limits, host=host, port=port, device=device, poll_seconds=poll, adapters=adapters,
        engine_choice=choice,
    )  # fmt: skip
