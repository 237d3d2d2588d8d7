"""The only place that knows Prefect, MLflow and Ray: how steps are run, watched and registered."""
