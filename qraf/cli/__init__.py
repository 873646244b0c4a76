"""The command line: `qraf serve | demo | chat | write | recall | sessions | state | topology | tune | version`.

Exit codes: 0 done; 1 the request failed; 2 wrong usage; 3 no server answers, or the connection was lost.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the `qraf` command."""
    from qraf.cli.app import app

    try:
        app(prog_name="qraf")
    except ModuleNotFoundError as error:
        if (error.name or "qraf").split(".")[0] == "qraf":
            raise
        # the light client has no server in it
        sys.stderr.write(
            f"error: package '{error.name}' is missing; install the server: pip install 'qraf[server,local]'\n"
        )
        sys.exit(1)
