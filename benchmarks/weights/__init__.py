"""Weights that exist: adapters, other engines, transformers."""
