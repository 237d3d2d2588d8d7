"""From text to samples: sources, cleaning, tokenizer, mixture, tasks and the denoisers.

In the order of the pipeline: `sources` reads, `clean` filters, `tokenizer` learns pieces,
`mixture` chooses documents, `denoise` corrupts them; `tasks` turns labelled records into pairs.
"""
