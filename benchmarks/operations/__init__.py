"""Figures of operations: accounting, node failures, serving, flows on real servers."""
