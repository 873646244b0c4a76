"""`python -m qraf.cli`."""

from __future__ import annotations

from qraf.cli import main

if __name__ == "__main__":
    main()
