"""Who may ask the gateway: keys that are shown once, when they are made, and kept as hashes.

A key holds 32 random bytes, so a plain SHA-256 of it cannot be guessed back, and looking it up leaks nothing by time.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quorate.durable import replace_file
from quorate.errors import ConfigError

__all__ = ["ApiKey", "KeyFile"]

_PREFIX = "qk-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What is kept of a key."""

    name: str
    """Whose it is: what usage and logs call it."""
    hash: str
    """SHA-256 of the key, in hex."""
    made_at: int
    """Seconds since 1970."""
    most_tokens: int | None = None
    """Its budget: tokens in and out, of all its answers together; None: no end."""


class KeyFile:
    """The keys, in a file of JSON that is read again when it has changed: a revoked key is refused at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: Mapping[str, ApiKey] = {}

    def find(self, key: str) -> ApiKey | None:
        """The key that this is, None if it is none; raises ConfigError where the file cannot be read."""
        self._read()
        return self._keys.get(_hash(key))

    def all(self) -> tuple[ApiKey, ...]:
        """All keys, in the order in which they were made."""
        self._read()
        return tuple(self._keys.values())

    def make(self, name: str, most_tokens: int | None = None) -> str:
        """A new key; the only time that it is seen. Raises ConfigError where the name is taken or none."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a key: letters, digits, . _ -, at most 64")
        if most_tokens is not None and most_tokens < 1:
            raise ConfigError(f"the budget is {most_tokens} tokens; expected at least 1")
        if any(one.name == name for one in self.all()):
            raise ConfigError(f"there is a key named {name} already", fix="revoke it first, or choose another name")
        key = _PREFIX + secrets.token_urlsafe(32)
        self._write(
            [*self.all(), ApiKey(name=name, hash=_hash(key), made_at=int(time.time()), most_tokens=most_tokens)]
        )
        return key

    def revoke(self, name: str) -> None:
        """Forget a key; raises ConfigError where there is none of this name."""
        kept = [one for one in self.all() if one.name != name]
        if len(kept) == len(self.all()):
            raise ConfigError(f"there is no key named {name}")
        self._write(kept)

    def _write(self, keys: list[ApiKey]) -> None:
        replace_file(self.path, json.dumps({"keys": [asdict(one) for one in keys]}, indent=1).encode(), mode=0o600)
        self._stamp = None

    def _read(self) -> None:
        try:
            state = self.path.stat()
        except FileNotFoundError:
            self._stamp, self._keys = None, {}
            return
        stamp = (state.st_mtime_ns, state.st_ino)
        if stamp == self._stamp:
            return
        try:
            rows: list[dict[str, Any]] = json.loads(self.path.read_text())["keys"]
            self._keys = {row["hash"]: ApiKey(**row) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} is no file of keys: {error}") from None
        self._stamp = stamp


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
