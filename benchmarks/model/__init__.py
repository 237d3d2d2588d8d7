"""Figures of the model and its tokenizer against the release and transformers."""
