"""Floor 1: the journal, in SQL."""
