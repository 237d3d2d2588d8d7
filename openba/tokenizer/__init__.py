"""Text to token ids and back, for the package and for transformers: one layout of ids, one set of files."""
