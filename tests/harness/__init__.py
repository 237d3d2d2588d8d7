"""Processes, worker groups, network namespaces and servers for tests and benchmarks: the real ones."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the checkout."""
