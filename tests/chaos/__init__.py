"""Chaos: clients that write and stream while parts of a running server are killed one after the other.

`python -m tests.chaos` (or `make chaos`) does all of it and prints a table; `test_chaos.py` beside the other end-to-end
tests does a short one.
"""
