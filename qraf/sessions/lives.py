"""A gateway's life as others on its machine see it: a file that is locked for as long as the process lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

__all__ = ["Life", "is_over"]


class Life:
    """The file of one life. `begin` once, `end` any number of times; the death of the process unlocks it, too."""

    def __init__(self, folder: Path, epoch: str) -> None:
        self._file, self._handle = folder / epoch, -1

    def begin(self) -> None:
        """Make the file, locked from the moment at which others can see it."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        aside = self._file.with_name(f".{self._file.name}")
        self._handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        aside.rename(self._file)

    def end(self, *, is_told: bool = True) -> None:
        """Take the file away; where the journal was not told of the end, leave it unlocked, as a death does."""
        if self._handle >= 0:
            if is_told:
                self._file.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1


def is_over(folder: Path, epoch: str) -> bool:
    """Whether the life of this epoch is known to have ended; False also where there is nothing to tell it by."""
    file = folder / epoch
    try:
        handle = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        with contextlib.suppress(OSError):
            file.unlink()
        return True
    finally:
        os.close(handle)
