"""The typed form of every YAML file: what a pipeline may say, and nothing else.

One module per part of the story: `data` (sources, cleaning, tokenizer, mixture, tasks),
`model`, `train`, `evaluate`, `runtime`, and `pipeline`, which joins them.
"""
