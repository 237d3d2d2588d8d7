"""Figures of evaluation: metrics against libraries, tasks against lm-evaluation-harness."""
