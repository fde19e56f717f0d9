"""Where one agent keeps the agreed state: a SQLite file with one row, replaced atomically at each Commit.

State and height are one value, so no crash can part them. WAL with `synchronous=NORMAL` survives the death of the
process at once and loses, at worst, the last blocks when the machine loses power: CometBFT then replays them. It is
deliberately not more durable than that: CometBFT refuses an application that is ahead of it, and replays to one that
is behind.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from quorate.errors import ConfigError, SetupError

__all__ = ["Store"]


class Store:
    """The durable state of the application of one chain."""

    def __init__(self, path: str | Path, chain_id: str) -> None:
        """Open (or make) the file at `path`; `ConfigError` where it cannot be used or belongs to another chain."""
        self.path = Path(path)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            self._db.execute(
                "create table if not exists state"
                "(id integer primary key check(id = 0), chain text not null, value blob)"
            )
            self._db.execute("insert or ignore into state values(0, ?, null)", (chain_id,))
            owner = self._db.execute("select chain from state").fetchone()[0]
            self._is_adopted = self.is_adopted
        except sqlite3.Error as error:
            raise ConfigError(
                f"the state file {self.path} cannot be opened: {error}",
                fix="See whether its folder exists, is writable and has room.",
            ) from error
        if owner != chain_id:
            self.close()
            raise ConfigError(
                f"{self.path} belongs to the chain {owner}; this is {chain_id}", fix="Give each chain its own home."
            )

    def load(self) -> bytes | None:
        """What was saved last, or None before the first block."""
        value = self._db.execute("select value from state").fetchone()[0]
        return None if value is None else bytes(value)

    @property
    def is_adopted(self) -> bool:
        """True where the state came from peers (`adopt`) and nothing was saved since."""
        return bool(self._db.execute("pragma user_version").fetchone()[0])

    def save(self, value: bytes) -> None:
        """Replace the state; when this returns, a killed process finds `value` again. `SetupError` where it cannot."""
        self._write(value, is_adopted=False)

    def adopt(self, value: bytes) -> None:
        """As `save`, for a state that peers gave: until a block is committed, CometBFT may have no note of it."""
        self._write(value, is_adopted=True)

    def _write(self, value: bytes, *, is_adopted: bool) -> None:
        try:
            if is_adopted == self._is_adopted:
                self._db.execute("update state set value = ?", (value,))
                return
            self._db.execute("begin")
            self._db.execute("update state set value = ?", (value,))
            self._db.execute(f"pragma user_version = {int(is_adopted)}")
            self._db.execute("commit")
            self._is_adopted = is_adopted
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise SetupError(
                f"the agreed state could not be written to {self.path}: {error}",
                fix="Make room on its disk and start the agent again; the chain replays what is missing.",
            ) from error

    def close(self) -> None:
        """Close the file; what was saved is in it."""
        self._db.close()
