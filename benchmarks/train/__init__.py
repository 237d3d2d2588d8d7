"""Figures of training: parallelism, resuming, padding, checkpoints."""
