"""Sealing: AES-256-GCM under data keys, which master keys wrap (envelope encryption; NIST SP 800-38D).

Every memory has a data key, and so have the stored states of each tenant. What is sealed is bound, as additional data,
to its tenant, memory, number and kind, so a row that was changed, moved or put back from an older copy does not open.
Nonces are random, 96 bits: good for 2^32 rows of one key (SP 800-38D, section 8.3). Master keys come from a file, the
environment or a command; the first of them wraps, all of them unwrap.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import secrets
import shlex
import subprocess
import threading
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qraf.errors import KeysMissing
from qraf.settings import SealSettings

__all__ = ["DataKey", "MasterKeys", "NotOpened", "bound", "new_key", "new_key_line", "write_new"]

_log = logging.getLogger(__name__)

_pack = msgspec.msgpack.Encoder().encode
_KEY_BYTES, _NONCE_BYTES = 32, 12
_MOST_TOKENS = 64  # names that a key remembers
_COMMAND_S = 30.0
_MAX_FILE_BYTES = 65_536


class NotOpened(Exception):
    """A tag that failed; who calls knows what it was and says so."""


def bound(*facts: str | int) -> bytes:
    """Additional data: what sealed bytes belong to, without ambiguity."""
    return _pack(("qraf.1", *facts))


def new_key() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(_KEY_BYTES)


def new_key_line() -> str:
    """A new master key as a file, a variable or a command has it."""
    return base64.b64encode(new_key()).decode()


class DataKey:
    """Seals what belongs to one memory. Safe for several threads."""

    __slots__ = ("_aead", "_names", "_tokens", "id")

    def __init__(self, id: int, key: bytes) -> None:
        self.id = id
        self._aead = AESGCM(key)
        self._names = hmac.digest(key, b"qraf: names", "sha256")
        self._tokens: dict[str, str] = {}

    def seal(self, plain: bytes, belongs: bytes) -> bytes:
        """Nonce, ciphertext and tag: 28 bytes more than what went in."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, belongs)

    def open(self, sealed: bytes, belongs: bytes) -> bytes:
        """What was sealed, if it belongs there and nobody changed it; raises NotOpened."""
        return _open(self._aead, sealed, belongs)

    def token(self, name: str) -> str:
        """Stands for a name in a column that must tell names apart: equal for equal names of one key only."""
        token = self._tokens.get(name)
        if token is None:
            token = base64.urlsafe_b64encode(hmac.digest(self._names, name.encode(), "sha256")[:18]).decode()
            if len(self._tokens) < _MOST_TOKENS:
                self._tokens[name] = token
        return token


class MasterKeys:
    """The master keys of a source, read again when it changes. Safe for several threads.

    Args:
        settings: where they are. At most one of `key_file`, `key` and `command`; with none of them `default_file`.
        default_file: may be made with a new key, by `make`; a file that was named may not.
    """

    def __init__(self, settings: SealSettings, default_file: Path) -> None:
        self.is_on = settings.mode == "on"
        self._given = settings.key.get_secret_value()
        if (settings.key_file is not None) + bool(self._given) + bool(settings.command) > 1:
            raise KeysMissing("name one of seal.key_file, seal.key and seal.command, not several")
        self._command = settings.command
        self._named = settings.key_file is not None
        self.was_made = False  # the file, by this object
        self.file: Path | None = None
        if not self._given and not self._command:
            self.file = settings.key_file or default_file
        self._keys: dict[str, AESGCM] = {}  # the first one wraps
        self._seen: object = None
        self._lock = threading.Lock()

    @property
    def source(self) -> str:
        """Where the keys come from, without any of them."""
        if self.file is not None:
            return f"the file {self.file}"
        return "QRAF_SEAL__KEY" if self._given else "the command in QRAF_SEAL__COMMAND"

    def make(self) -> bool:
        """Make the default file with a new key unless it is there; whether it was made. Its owner alone may read it."""
        if self.file is None or self._named or self.file.exists():
            return False
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = f"# QRAF's master key: without it nothing that is sealed can be read again\n{new_key_line()}\n"
        try:
            write_new(self.file, line)
        except FileExistsError:  # another process was first
            return False
        self.was_made = True
        return True

    def check(self, needed: set[str]) -> None:
        """Read the keys and look whether all `needed` are among them.

        Raises:
            KeysMissing: they cannot be read, or one is not there.
        """
        with self._lock:
            self._read()
            self._need(needed)

    def first(self) -> str:
        """The id of the key that wraps; reads the file again if it has changed."""
        with self._lock:
            self._refresh()
            return next(iter(self._keys))

    def wrap(self, key: bytes, belongs: bytes) -> tuple[str, bytes]:
        """The id of the first master key, and a data key wrapped by it."""
        with self._lock:
            self._refresh()
            name, aead = next(iter(self._keys.items()))
        nonce = os.urandom(_NONCE_BYTES)
        return name, nonce + aead.encrypt(nonce, key, bound(name) + belongs)

    def unwrap(self, id: str, wrapped: bytes, belongs: bytes) -> bytes:
        """A data key. A master key that is not known may be a new one: the source is read again.

        Raises:
            KeysMissing: that master key is not there.
            NotOpened: the wrapped key was changed.
        """
        with self._lock:
            if id not in self._keys:
                self._read()
                self._need({id})
            aead = self._keys[id]
        return _open(aead, wrapped, bound(id) + belongs)

    def _need(self, ids: set[str]) -> None:
        if missing := sorted(ids - self._keys.keys()):
            have = f"has {', '.join(self._keys)}"
            raise KeysMissing(f"the journal is sealed with master key {', '.join(missing)}, but {self.source} {have}")

    def _refresh(self) -> None:
        if not self._keys or (self.file is not None and self._stamp() != self._seen):
            self._read()

    def _stamp(self) -> object:
        assert self.file is not None
        try:
            found = self.file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        text = self._given
        if self.file is not None:
            seen = self._stamp()
            text = self._read_file(self.file)
            self._seen = seen
        elif self._command:
            text = self._run(self._command)
        lines = [line.partition("#")[0].split() for line in text.splitlines()]
        keys = [_parsed(word, self.source) for words in lines for word in words]
        if not keys:
            raise KeysMissing(f"{self.source} has no master key")
        self._keys = {_id(key): AESGCM(key) for key in keys}

    def _read_file(self, file: Path) -> str:
        try:
            with file.open(encoding="utf-8") as opened:
                if os.fstat(opened.fileno()).st_mode & 0o077:
                    _log.warning("%s can be read by others than its owner; chmod 600 it", file)
                return opened.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            raise KeysMissing(
                f"the master key file {file} is not there; put it back, or name it by QRAF_SEAL__KEY_FILE"
            ) from None
        except (OSError, UnicodeDecodeError) as fault:
            raise KeysMissing(f"the master key file {file} cannot be read: {type(fault).__name__}") from None

    @staticmethod
    def _run(command: str) -> str:
        try:
            done = subprocess.run(
                shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_S, check=True
            )
            return done.stdout.decode()
        except (OSError, ValueError, subprocess.SubprocessError) as fault:
            code = f" {fault.returncode}" if isinstance(fault, subprocess.CalledProcessError) else ""
            # neither what it was nor what it printed: either may hold a secret
            raise KeysMissing(f"the command in QRAF_SEAL__COMMAND failed: {type(fault).__name__}{code}") from None


def write_new(file: Path, text: str) -> None:
    """Write a file that is not there yet, for its owner alone, to the disk; raises FileExistsError."""
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open(aead: AESGCM, sealed: bytes, belongs: bytes) -> bytes:
    try:
        return aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], belongs)
    except (InvalidTag, ValueError):
        raise NotOpened from None


def _parsed(word: str, source: str) -> bytes:
    try:
        key = base64.b64decode(word, validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != _KEY_BYTES:
        raise KeysMissing(f"a master key in {source} is not the base64 of {_KEY_BYTES} bytes")
    return key


def _id(key: bytes) -> str:
    return hashlib.sha256(b"qraf: master key\0" + key).hexdigest()[:12]
