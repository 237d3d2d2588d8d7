"""Orchestration: how steps are run, watched and registered. All use of Ray and MLflow is here."""
