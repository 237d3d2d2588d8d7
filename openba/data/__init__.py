"""From text to samples: sources, cleaning, tokenizer, mixture, tasks and the denoisers.

In the order of the pipeline: `sources` reads, `clean` filters, `tokenizer` learns pieces,
`catalogue` and `mixture` choose documents, `store` keeps their tokens, `denoise` corrupts them;
`tasks` turns labelled records into pairs.
"""
