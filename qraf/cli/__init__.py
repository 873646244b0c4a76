"""The command line: `qraf serve | demo | chat | write | recall | sessions | topology | version`.

Exit codes: 0 done; 1 the request failed; 2 wrong usage; 3 no server answers, or the connection was lost.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the `qraf` command."""
    from qraf.cli.app import app

    app(prog_name="qraf")
