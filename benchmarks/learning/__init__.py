"""Figures of learning: this model and T5 on small tasks."""
