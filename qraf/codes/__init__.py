"""Stabiliser codes: memory experiments, decoding in batches and in windows, the logical channel of a protected link."""
