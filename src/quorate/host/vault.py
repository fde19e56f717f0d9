"""What one agent keeps to itself across restarts: the openings of its sealed payloads (`quorate.rounds.Vault`).

A commitment names its period, so it opens in that period alone: what was kept in one that is over, as *decided* blocks
have it, is of no use to anybody and goes. A period that is merely proposed ends none: its block may never be decided.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from quorate.durable import replace_file, sync_folder
from quorate.errors import ConfigError

__all__ = ["FileVault"]


class FileVault:
    """A file for each secret of one period, in a folder that only this agent's user can read."""

    def __init__(self, folder: Path, period: int = 0, committed: Callable[[], int] = lambda: 0) -> None:
        """`folder` holds those of all periods; `committed` gives the period that the last decided block led to."""
        self._all, self._folder, self._committed = folder, folder / str(period), committed

    async def salt(self) -> str:
        """32 bytes from the operating system, as hex."""
        return secrets.token_hex(32)

    async def put(self, name: str, content: str) -> None:
        """Store `content`; it is on disk when this returns, whole or not at all. What no period needs any more goes."""
        path, over = self._path(name), self._committed()
        await asyncio.to_thread(self._write, path, content)
        await asyncio.to_thread(self._forget_before, over)

    async def get(self, name: str) -> str | None:
        """What was stored under `name`, or None."""
        path = self._path(name)
        return await asyncio.to_thread(path.read_text, "utf-8") if path.exists() else None

    def _path(self, name: str) -> Path:
        if not name or Path(name).name != name or name.startswith("."):
            raise ConfigError(f"{name!r} is no name for a secret; expected a plain file name")
        return self._folder / name

    def _forget_before(self, period: int) -> None:
        for folder in self._all.iterdir():
            if folder.name.isdecimal() and int(folder.name) < period:
                shutil.rmtree(folder, ignore_errors=True)  # another act of ours may be at it, too

    def _write(self, path: Path, content: str) -> None:
        self._all.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        replace_file(path, content.encode(), mode=0o600)
        sync_folder(self._all)  # the period's own name, too, survives a power cut
