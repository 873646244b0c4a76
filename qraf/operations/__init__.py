"""What is asked of states and codes, answered: pure functions from orders to answers; no I/O, no actors."""
