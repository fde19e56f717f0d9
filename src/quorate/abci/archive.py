"""What one agent keeps of its chain's past: snapshots of the agreed state for peers that lost theirs, and some blocks.

A snapshot is the stored form of the state (`Replica.encode`) after a block, in chunks. Whoever takes one believes no
peer: the bytes must decode to a state whose app hash is the one that CometBFT's light client has verified.

- All agents write the same snapshots at the same heights, so a receiver may take its chunks from several of them.
- Blocks are pruned only far below the oldest snapshot: a receiver needs those above the one that it took.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from quorate.errors import ConfigError, PeerError, SetupError

__all__ = ["CHUNK_BYTES", "FORMAT", "MAX_CHUNKS", "Archive", "Incoming", "Retention", "Snapshot"]

FORMAT = 1
CHUNK_BYTES = 1024 * 1024
MAX_CHUNKS = 64
_PROVEN_BY = 2  # blocks after a snapshot's whose headers the light client asks for: it must not be offered before


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How much of the past an agent keeps. A block takes about 13 kB of disk; a snapshot is as large as the state."""

    blocks: int = 10_000
    """The newest blocks, which are never pruned."""
    snapshot_every: int = 200
    """Blocks from one snapshot to the next: what a receiver has to catch up with at most, beside what goes on."""
    snapshots: int = 10

    def __post_init__(self) -> None:
        if self.snapshot_every < 1 or self.snapshots < 1:
            raise ConfigError(
                f"{self.snapshots} snapshots, one every {self.snapshot_every} blocks; expected 1 or more of both"
            )
        if self.blocks < (needed := self.snapshot_every * (self.snapshots + 1)):
            raise ConfigError(
                f"{self.blocks} blocks are kept, but {self.snapshots} snapshots reach back over {needed} of them",
                fix=f"Keep {needed} blocks or more, or fewer snapshots.",
            )


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as one agent tells another of it."""

    height: int
    hash: bytes
    """SHA-256 of the whole; says which bytes were meant, not that they are true."""
    chunks: int


class Archive:
    """The snapshots of one agent, a file each in `folder`."""

    def __init__(self, folder: Path, retention: Retention | None = None) -> None:
        self.retention = retention or Retention()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def committed(self, height: int, state: bytes, *, is_new_version: bool = False) -> int:
        """Note that `state` is durable at `height`; returns the height below which blocks may go (0: none).

        The first state of a new version is kept whatever its height: its code can take no older one.
        """
        if height % self.retention.snapshot_every and not is_new_version:
            return 0
        try:
            self._write(height, state)
            for old in self.heights()[: -self.retention.snapshots]:
                self._drop(old)
        except OSError as error:
            raise SetupError(
                f"the snapshot of block {height} could not be written to {self._folder}: {error}",
                fix="Make room on its disk and start the agent again.",
            ) from error
        return max(0, height - self.retention.blocks + 1)

    def heights(self) -> list[int]:
        """Of the snapshots that are there, the oldest first."""
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def offers(self, height: int) -> list[Snapshot]:
        """The snapshots that peers can verify while the chain's last block is `height`."""
        found = []
        for at in self.heights():
            if at + _PROVEN_BY <= height and (state := self._read(at)):
                found.append(Snapshot(at, hashlib.sha256(state).digest(), -(-len(state) // CHUNK_BYTES)))
        return [snapshot for snapshot in found if snapshot.chunks <= MAX_CHUNKS]

    def chunk(self, height: int, index: int) -> bytes:
        """Empty where there is no such chunk (any more): the peer asks another agent."""
        return self._read(height)[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]

    def _write(self, height: int, state: bytes) -> None:
        part = self._folder / "part"
        part.write_bytes(state)
        part.rename(self._path(height))

    def _drop(self, height: int) -> None:
        self._path(height).unlink(missing_ok=True)

    def _read(self, height: int) -> bytes:
        try:
            return self._path(height).read_bytes()
        except FileNotFoundError:
            return b""

    def _path(self, height: int) -> Path:
        return self._folder / str(height)


@dataclass
class Incoming:
    """A snapshot that is being received, and the app hash that it must have."""

    snapshot: Snapshot
    app_hash: bytes
    """Of the header after the snapshot's block, as the light client verified it."""
    _chunks: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.snapshot.chunks <= MAX_CHUNKS:
            raise PeerError(f"a snapshot of {self.snapshot.chunks} chunks; expected 1 to {MAX_CHUNKS}")

    def put(self, index: int, chunk: bytes) -> bytes | None:
        """The whole once all chunks are there; `PeerError` where they are not what was offered."""
        if not 0 <= index < self.snapshot.chunks or len(chunk) > CHUNK_BYTES:
            raise PeerError(f"chunk {index} of {len(chunk)} bytes, in a snapshot of {self.snapshot.chunks} chunks")
        self._chunks[index] = chunk
        if len(self._chunks) < self.snapshot.chunks:
            return None
        whole = b"".join(self._chunks[at] for at in range(self.snapshot.chunks))
        if hashlib.sha256(whole).digest() != self.snapshot.hash:
            raise PeerError(f"the chunks of the snapshot of block {self.snapshot.height} are not what was offered")
        return whole
