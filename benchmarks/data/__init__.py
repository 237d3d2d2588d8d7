"""Figures of the data pipeline: cleaning, deduplication, UL2 samples, token shards."""
