"""Rotation of master keys while servers run: a new key in front, every data key wrapped anew, old ones kept or dropped.

Processes that have the journal open find a new key when they meet a data key that it wraps, and look at the file before
they make a data key of their own; so nothing has to be stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from qraf.errors import KeysMissing
from qraf.storage.journal import Journal
from qraf.storage.seal import MasterKeys, new_key_line, write_new

__all__ = ["Rotation", "rotate"]


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """What a rotation did: the id of the key that wraps now, how many data keys it has taken over."""

    first: str
    is_new: bool
    wrapped: int
    dropped: int


def rotate(
    journal: Journal,
    masters: MasterKeys,
    *,
    drop_old: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Rotation:
    """Put a new key in front of the file, or take the first of another source, and wrap every data key by it.

    Old keys stay in the file unless `drop_old`: backups that were made before need them. They are dropped only when no
    data key needs them, while nobody can make one. Twice is harmless. What was interrupted goes on at the next call.

    Raises:
        KeysMissing: the keys cannot be read, or old ones are to be dropped from a source that is no file.
    """
    file = masters.file
    if drop_old and file is None:
        raise KeysMissing(f"the old keys are in {masters.source}, which is not QRAF's to change; take them out there")
    masters.check(set(journal.masters_used()))
    if file is not None:
        _replace(file, f"{new_key_line()}\n{file.read_text(encoding='utf-8')}")
    first, wrapped, dropped = masters.first(), 0, 0

    def drop() -> None:
        nonlocal dropped
        if file is not None and drop_old:
            dropped = _keep_first(file)

    while count := journal.rewrap(then=drop):
        wrapped += count
        if on_progress is not None:
            on_progress(wrapped)
    return Rotation(first=first, is_new=file is not None, wrapped=wrapped, dropped=dropped)


def _keep_first(file: Path) -> int:
    words = [word for line in file.read_text(encoding="utf-8").splitlines() for word in line.partition("#")[0].split()]
    _replace(file, f"{words[0]}\n")
    return len(words) - 1


def _replace(file: Path, text: str) -> None:
    """Change a file at once, keeping its mode and owner where that is allowed."""
    file = file.resolve()
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    write_new(aside, text)
    found = file.stat()
    aside.chmod(found.st_mode & 0o777)
    if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(aside, found.st_uid, found.st_gid)
    aside.replace(file)
