"""One module per question; run as `python -m benchmarks.NAME`. Results are in benchmarks/README.md."""
