"""Floor 2: a memory, its items and its state; absorb, recall, forget."""
