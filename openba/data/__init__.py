"""Data from sources to training samples.

In the order of the pipeline: `sources` reads, `clean` filters, `tokenizer_training` trains a tokenizer,
`catalogue` and `mixture` choose documents, `store` keeps their tokens, `denoise` corrupts them. `labelled`
renders labelled records to pairs of text, `instruct` tokenises and mixes these.
"""
