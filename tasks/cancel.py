"""The end of a flow run that was cancelled or whose process died: its Ray jobs and MLflow runs.

Owns what Prefect's hooks call. They run in the worker, not in the flow's process, and find
everything by the flow run's id: an MLflow run names its flow run and the step's fingerprint, and
the step and fingerprint name the Ray job. A run's own cluster has ended with its process.
"""

from __future__ import annotations

import os
from typing import Any

from mlflow.tracking import MlflowClient

from openba.errors import error_boundary
from openba.home import Home
from tasks.tracking import FINGERPRINT


@error_boundary()
def end_flow_run(flow: Any, flow_run: Any, state: Any) -> None:
    """Stop the jobs of a flow run on the cluster that RAY_ADDRESS names; mark its MLflow runs KILLED."""
    del flow, state
    client = MlflowClient(tracking_uri=Home.from_environment().tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = f"attributes.status = 'RUNNING' and tags.`prefect.flow_run_id` = '{flow_run.id}'"
    runs = client.search_runs(experiments, wanted)
    stop_jobs([f"{run.data.tags['openba.step']}-{run.data.tags[FINGERPRINT]}-" for run in runs])
    for run in runs:
        client.set_terminated(run.info.run_id, "KILLED")


def stop_jobs(prefixes: list[str]) -> None:
    """Stop the running jobs whose ids begin so, on the cluster that RAY_ADDRESS names, if it names one."""
    address = os.environ.get("RAY_ADDRESS")
    if not address or not prefixes:
        return
    from ray.job_submission import JobSubmissionClient

    jobs = JobSubmissionClient(address)
    for job in jobs.list_jobs():
        if (job.submission_id or "").startswith(tuple(prefixes)) and not job.status.is_terminal():
            jobs.stop_job(str(job.submission_id))
