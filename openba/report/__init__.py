"""The report: one self-contained HTML page made from one dictionary of facts.

`page.render` is the only entry. Where the facts come from is not its business.
"""
