"""Figures of quality: cleaning, contamination, answers, expert filters."""
