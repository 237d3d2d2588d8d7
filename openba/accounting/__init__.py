"""Costs of training: FLOPs and parameters, memory, energy and carbon, before and after a run.

Pure arithmetic on recipes, but for `energy.EnergyMeter`, which reads the machine's own counters, and
`estimate.estimated`, which asks codecarbon.
It trains nothing and reports nothing.
"""
