"""What one agent keeps to itself across restarts: the openings of its sealed payloads (`quorate.rounds.Vault`)."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

from quorate.errors import ConfigError

__all__ = ["FileVault"]


class FileVault:
    """A file for each secret, in a folder that only this agent's user can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def salt(self) -> str:
        """32 bytes from the operating system, as hex."""
        return secrets.token_hex(32)

    async def put(self, name: str, content: str) -> None:
        """Store `content`; it is on disk when this returns, whole or not at all."""
        await asyncio.to_thread(self._write, self._path(name), content)

    async def get(self, name: str) -> str | None:
        """What was stored under `name`, or None."""
        path = self._path(name)
        return await asyncio.to_thread(path.read_text, "utf-8") if path.exists() else None

    def _path(self, name: str) -> Path:
        if not name or Path(name).name != name or name.startswith("."):
            raise ConfigError(f"{name!r} is no name for a secret; expected a plain file name")
        return self._folder / name

    def _write(self, path: Path, content: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, survives a power cut
        finally:
            os.close(folder)
