"""What users open and stream through: sessions, writes, recall, responses."""
