"""The physics: pure functions on amplitudes and density operators; no I/O, no actors."""
