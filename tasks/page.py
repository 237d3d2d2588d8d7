"""Artifacts on Prefect's page of a flow run: progress and curves of trainings, a table of steps, links.

Owns the artifacts and their keys, which stay the same from run to run, so that the page of a key is its
history. A server that does not answer costs the picture, never the training.
"""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectException

from openba.json_types import JsonObject
from openba.report.charts import loss_chart
from openba.train.log import METRICS, last_rows, read_rows

_SECONDS_BETWEEN_UPDATES = 10.0
_PAUSES = (0.5, 1.0, 2.0, 4.0)
# The report's charts take their colours from its page; a picture brings them along.
_COLOURS = (
    "svg{--ink:#22262b;--muted:#68707a;--rule:#dcdad3;--c1:#2b6cb0;--c2:#c8702a;"
    "background:#fff;font-family:sans-serif}"
)


class Page:
    """The artifacts of one pipeline. Outside a flow run it shows nothing."""

    def __init__(self, pipeline_name: str) -> None:
        self.pipeline = pipeline_name
        self._progress: dict[str, UUID] = {}
        self._next: dict[str, float] = {}

    def start(self, training_name: str) -> None:
        """Add the progress of a training that begins."""
        artifact_key = self.key(training_name)
        artifact_id = _show(
            lambda: create_progress_artifact(0.0, artifact_key, f"Training {training_name}, % of its steps")
        )
        if artifact_id is not None:
            self._progress[training_name] = artifact_id

    def advance(self, training_name: str, stage_folder: Path, total_steps: int) -> None:
        """Update a training's progress from its files, at most every 10 s."""
        artifact_id = self._progress.get(training_name)
        if artifact_id is None or time.monotonic() < self._next.get(training_name, 0.0):
            return
        self._next[training_name] = time.monotonic() + _SECONDS_BETWEEN_UPDATES
        if rows := last_rows(stage_folder / METRICS, 1):
            _show(
                lambda: update_progress_artifact(artifact_id, progress=100.0 * rows[-1]["step"] / total_steps)
            )

    def finish(self, training_name: str, stage_folder: Path) -> None:
        """Mark a training as done and draw its curve."""
        if (artifact_id := self._progress.pop(training_name, None)) is None:
            return
        _show(lambda: update_progress_artifact(artifact_id, progress=100.0))
        # The chart needs step and loss only.
        loss_rows: Any = [row for row in read_rows(stage_folder / METRICS) if row["loss"] is not None]
        image_address = picture(loss_chart(training_name, loss_rows))
        _show(
            lambda: create_image_artifact(
                image_address, self.key(training_name, "loss"), f"Training loss of {training_name}"
            )
        )

    def close(self, step_rows: list[JsonObject], links: Mapping[str, str]) -> None:
        """Write the table of all steps and the links, at the end of the run."""
        _show(lambda: create_table_artifact(step_rows, self.key("steps"), f"Steps of {self.pipeline}"))
        for label, link_target in links.items():
            if url_match := re.match(r"https?://\S+", link_target):
                url = url_match[0]
                _show(lambda url=url, label=label: create_link_artifact(url, label, self.key(label)))  # type: ignore[misc]

    def key(self, *words: str) -> str:
        """Return an artifact's key: lower-case letters, digits and dashes, as Prefect demands."""
        return re.sub(r"[^a-z0-9]+", "-", " ".join(("openba", self.pipeline, *words)).lower()).strip("-")


def picture(svg: str) -> str:
    """Return a chart of the report as an address that holds the whole picture."""
    standalone_svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="720" ', 1)
    standalone_svg = standalone_svg.replace(">", f"><style>{_COLOURS}</style>", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(standalone_svg.encode()).decode()}"


def _show(make_artifact: Callable[[], Any]) -> Any:
    # Prefect shows an artifact with the run in whose context it is made; outside of one nobody would see it.
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return None
    for retry_pause in (*_PAUSES, None):
        try:
            return make_artifact()
        except (PrefectException, httpx.HTTPError) as error:
            if retry_pause is None or not _may_pass(error):
                warning_text = "Prefect does not answer (%s); its page lacks something"
                logging.getLogger(__name__).warning(warning_text, error)
                return None
            time.sleep(retry_pause)


def _may_pass(error: Exception) -> bool:
    """Return whether an error is the server's own, as when its database restarts: a retry may succeed."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error
