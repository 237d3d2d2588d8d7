"""The paper's filters (section 3.1.1): privacy, page markup, odd characters, repeats, duplicates, language.

Each module has functions from one text to `Edit`s, spans to take out with the rule that says so;
`corpus` is the step that runs them over all sources and records what went and why.
"""
