"""Scans over coded amplitudes: the best rows for every query, each score with a certified interval.

`reference` is the definition; `cpu` and `gpu` are fast, with the same signature. `native` is the C underneath `cpu`.
Nothing is imported here: `qraf.states.quantize` itself scans by `native`.
"""
