"""What must hold of a chain of agents, whatever was done to it: heard from every agent's own journal, line by line.

Pure: events in, figures and `Violation` out.

- All agents have the same app hash at each height, in all their lives.
- A round ends once: all agents see it end in the same block, with the same event, in the same state.
- No round is lost: of all sequence numbers up to the last one, each was seen to end.
- Effects are exactly once: a state that counts its rounds (`value`) grows by one with each of them.
- In one life an agent commits one block after another; only a snapshot, taken at its start, skips some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Judge", "Violation"]


class Violation(AssertionError):
    """Something that must hold does not."""


@dataclass
class _Life:
    """Where one agent is."""

    loaded: float = 0
    height: int = 0
    """The last block that it has committed, in this life or an earlier one."""
    committed: float = 0
    commits: int = 0
    """In this life."""


@dataclass
class Judge:
    hashes: dict[int, str] = field(default_factory=dict)
    """The app hash by height."""
    ends: dict[int, tuple[int, str, str]] = field(default_factory=dict)
    """By sequence number: the height at which the round ended, its event, and the digest of the state it led to."""
    values: dict[int, int] = field(default_factory=dict)
    lives: dict[int, _Life] = field(default_factory=dict)
    compared: int = 0
    """How often two agents told the same."""

    def hear(self, who: int, event: Mapping[str, Any]) -> None:
        """Take in what agent `who` wrote; `Violation` where it contradicts what is known."""
        life = self.lives.setdefault(who, _Life())
        kind = event["kind"]
        if kind == "loaded":
            life.loaded, life.commits, life.height = event["t"], 0, event["height"]
        elif kind == "commit":
            self._commit(who, life, event)
        elif kind == "settled":
            self._settled(who, event)

    def height(self, who: int) -> int:
        """The last block that this agent has committed in its present life, or was loaded with."""
        return self.lives[who].height if who in self.lives else 0

    @property
    def last(self) -> int:
        """The highest block that any agent has committed."""
        return max(self.hashes, default=0)

    @property
    def rounds(self) -> int:
        """The last round that has ended."""
        return max(self.ends, default=0)

    def at_the_end(self) -> None:
        """Nothing was lost."""
        if lost := [sequence for sequence in range(1, self.rounds + 1) if sequence not in self.ends]:
            raise Violation(f"of {self.rounds} rounds nobody has seen the end of {lost[:10]}")

    def _commit(self, who: int, life: _Life, event: Mapping[str, Any]) -> None:
        height, digest = event["height"], event["app_hash"]
        if life.height and height != life.height + 1:
            raise Violation(f"agent {who} commits block {height} after block {life.height}")
        life.height, life.committed, life.commits = height, event["t"], life.commits + 1
        self.compared += height in self.hashes
        if (known := self.hashes.setdefault(height, digest)) != digest:
            raise Violation(f"at height {height} agent {who} has the app hash {digest}; another one had {known}")

    def _settled(self, who: int, event: Mapping[str, Any]) -> None:
        sequence, end = event["sequence"], (event["height"], event["event"], event["digest"])
        self.compared += sequence in self.ends
        if (known := self.ends.setdefault(sequence, end)) != end:
            raise Violation(f"round {sequence} ended as {known}; for agent {who} it ended as {end}")
        value = event.get("value")
        if value is not None:
            self.values[sequence] = value
            for near in (sequence - 1, sequence + 1):
                if near in self.values and self.values[near] - value != near - sequence:
                    other = self.values[near]
                    raise Violation(f"the state counts {value} after round {sequence}, {other} after round {near}")
