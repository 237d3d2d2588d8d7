"""The report: one self-contained HTML page made from one dictionary of facts.

`collect.collect` gathers the facts and `page.render` makes the page.
"""
