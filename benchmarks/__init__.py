"""The one way to a figure of this project: `python -m benchmarks GROUP [--json]`."""
