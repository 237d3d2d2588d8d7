"""`openba serve`: answers over HTTP. Owns arguments; `tasks/serve.py` listens, `openba/serve` answers."""

from __future__ import annotations

from typing import Annotated

import typer

from openba.home import Home


def serve(
    model: Annotated[str, typer.Argument(help="Folder of an exported model, or models:/NAME@ALIAS.")],
    host: Annotated[str, typer.Option(help="Address; any but loopback needs OPENBA_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    device: Annotated[str, typer.Option(help="Of the model, as torch names it.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch on the CPU; default: its own.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Answers written at once.")] = 32,
    queue: Annotated[int, typer.Option(min=0, help="Answers that may wait.")] = 256,
    body: Annotated[int, typer.Option(min=1024, help="Bytes of a request's body.")] = 2**20,
    patience: Annotated[float, typer.Option(min=0.1, help="Seconds for a request to arrive.")] = 10.0,
    answer: Annotated[float, typer.Option(min=0.1, help="Seconds for an answer.")] = 300.0,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the alias.")] = 5.0,
    cluster: Annotated[bool, typer.Option("--cluster", help="On the Ray cluster of RAY_ADDRESS.")] = False,
    replicas: Annotated[int, typer.Option(min=0, help="On the cluster; 0 ends them.")] = 1,
) -> None:
    """Serve a model: OpenAI's API, a chat page, /health and /metrics, until Ctrl-C, or on a Ray cluster."""
    import torch

    from openba.serve.limits import Limits
    from tasks import serve as process

    home = Home.from_environment()
    limits = Limits(
        max_rows=rows, max_queued=queue, max_body_bytes=body, client_timeout=patience, answer_timeout=answer
    )
    if cluster:
        from tasks.serve_cluster import deploy

        deploy(
            model, home, limits, replicas=replicas, host=host, port=port, device=device, poll=poll,
            threads=threads or 1,
        )  # fmt: skip
        return
    if threads:
        torch.set_num_threads(threads)
    process.serve(model, home, limits, host=host, port=port, device=device, poll=poll)
