"""Benchmarks: answering held-out records of a task and scoring the answers."""
