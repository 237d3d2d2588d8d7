"""Cleaning of text by the paper's filters (section 3.1.1) and filters of the user's own.

`corpus` is the step; `filter` says what a filter is, `stages` in which order filters run.
"""
