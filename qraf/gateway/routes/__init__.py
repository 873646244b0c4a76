"""One small file per REST noun."""
