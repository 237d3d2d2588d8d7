"""Tokenizer of the package and of transformers, with one layout of ids and one set of files."""
