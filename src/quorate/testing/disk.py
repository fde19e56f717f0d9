"""One agent's disk in memory, and what can go wrong with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from quorate.abci import Archive, Retention, Store
from quorate.errors import SetupError
from quorate.host.signed import Memory

__all__ = ["Disk", "MemoryArchive", "MemoryStore"]

_LOST_AT_MOST = 4  # saves that a power cut may take back: WAL with synchronous=NORMAL


class Disk:
    """What outlives a process. Writing is atomic, as SQLite's is; the last writes may be lost with the machine."""

    def __init__(self) -> None:
        self.saved: bytes | None = None
        self.is_adopted = False
        """Whether what is saved came from peers."""
        self.is_full = False
        self.saves = 0
        self.signed = Memory()
        """Signing state: it is on disk before a signature leaves, and an owner who removes a state keeps it."""
        self._before: deque[tuple[bytes | None, bool]] = deque(maxlen=_LOST_AT_MOST)

    def write(self, value: bytes, *, is_adopted: bool = False) -> None:
        """Replace what is saved; `SetupError` while the disk is full."""
        if self.is_full:
            raise SetupError("the disk is full", fix="Make room.")
        self._before.append((self.saved, self.is_adopted))
        self.saved, self.is_adopted = value, is_adopted
        self.saves += 1

    def lose(self, writes: int) -> None:
        """A power cut: the last `writes` writes never happened (a torn one, too, leaves the one before)."""
        for _ in range(min(writes, len(self._before))):
            self.saved, self.is_adopted = self._before.pop()

    def flip(self, bit: int) -> None:
        """Damage one bit of what is saved."""
        if self.saved:
            index = bit // 8 % len(self.saved)
            flipped = self.saved[index] ^ (1 << bit % 8)
            self.saved = self.saved[:index] + bytes([flipped]) + self.saved[index + 1 :]

    def wipe(self) -> None:
        """Nothing is left."""
        self.saved, self.is_adopted = None, False
        self._before.clear()


class MemoryStore(Store):
    """`quorate.abci.Store` on a `Disk`; `at` is told before and after each write, and may raise."""

    def __init__(self, disk: Disk, at: Callable[[str], None]) -> None:
        self._disk, self._at = disk, at

    def load(self) -> bytes | None:
        """What was saved last, or None before the first block."""
        return self._disk.saved

    @property
    def is_adopted(self) -> bool:
        """True where the state came from peers and nothing was saved since."""
        return self._disk.is_adopted

    def save(self, value: bytes) -> None:
        """Replace what is saved."""
        self._at("save:before")
        self._disk.write(value)
        self._at("save:after")

    def adopt(self, value: bytes) -> None:
        """Replace what is saved by what peers gave."""
        self._at("save:before")
        self._disk.write(value, is_adopted=True)
        self._at("save:after")

    def close(self) -> None:
        """Nothing is open."""


class MemoryArchive(Archive):
    """`quorate.abci.archive.Archive` whose files are in memory."""

    def __init__(self, retention: Retention) -> None:
        self.retention = retention
        self._files: dict[int, bytes] = {}

    def heights(self) -> list[int]:
        """Of the snapshots that are there, the oldest first."""
        return sorted(self._files)

    def wipe(self) -> None:
        """Nothing is left."""
        self._files.clear()

    def _write(self, height: int, state: bytes) -> None:
        self._files[height] = state

    def _drop(self, height: int) -> None:
        del self._files[height]

    def _read(self, height: int) -> bytes:
        return self._files.get(height, b"")
