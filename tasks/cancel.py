"""The end of a flow run that was cancelled or whose process died: its Ray jobs and MLflow runs.

Owns what Prefect's hooks call. They run in the worker, not in the flow's process, and find everything by the
flow run's id, which each Ray job that it submitted and each MLflow run that it began has. A run's own cluster
has ended with its process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlflow.tracking import MlflowClient

from openba.errors import error_boundary
from openba.home import Home
from tasks.tracking import FINGERPRINT, FLOW_RUN

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


@error_boundary()
def end_flow_run(flow: Any, flow_run: Any, state: Any) -> None:
    """Stop the jobs of a flow run on the cluster that RAY_ADDRESS names; mark its MLflow runs KILLED.

    The jobs that it submitted are stopped first, whether MLflow answers or not. MLflow's runs then lead to
    those that an earlier flow run submitted and this one waited for.
    """
    del flow, state
    # By metadata, which Ray itself keeps: found also while MLflow is away.
    stop_jobs(lambda job: (job.metadata or {}).get(FLOW_RUN) == str(flow_run.id))
    client = MlflowClient(tracking_uri=Home.from_environment().tracking_uri)
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    run_filter = f"attributes.status = 'RUNNING' and tags.`{FLOW_RUN}` = '{flow_run.id}'"
    runs = client.search_runs(experiment_ids, run_filter)
    # A job that an earlier flow run submitted names that run in its metadata; its id has the fingerprint.
    job_prefixes = tuple(f"{run.data.tags['openba.step']}-{run.data.tags[FINGERPRINT]}-" for run in runs)
    stop_jobs(lambda job: (job.submission_id or "").startswith(job_prefixes))
    for run in runs:
        client.set_terminated(run.info.run_id, "KILLED")


def stop_jobs(is_wanted: Callable[[JobDetails], bool]) -> None:
    """Stop the running jobs that are wanted, on the cluster that RAY_ADDRESS names, if it names one."""
    ray_address = os.environ.get("RAY_ADDRESS")
    if not ray_address:
        return
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(ray_address)
    for job in client.list_jobs():
        if is_wanted(job) and not job.status.is_terminal():
            client.stop_job(str(job.submission_id))
