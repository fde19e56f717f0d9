"""What happens in a run, as JSON lines: each process writes its own file, and the tailer merges them in time order.

A line is one object: `t` (seconds since 1970), `who` ("agent-1"), `kind`, and the fields of that kind:

| kind | fields | meaning |
|---|---|---|
| ready | | the process can do its work |
| round | sequence, period, round | the agents are in this round now |
| act | round | the agent has begun its part of the round |
| payload | round, via (extension, transaction), ms | the agent has handed in its part |
| settled | round, event, sequence, height, ms | the round is over |
| asking | operator, model | the agent asks this operator; what comes is told by `model` or `refused` |
| model | model, operator, text, ms, receipt_ok, weight_bps | an operator has answered |
| refused | operator, reason | an operator's answer was not counted |
| signed | what, digest | the agent has signed |
| sent | tx, keeper | the keeper has sent a transaction |
| mined | tx, gas, block | the transaction is in a block |
| offence | what, member, height, sequence, period, evidence | a member's offence is on record |
| starting | models | an operator loads these models |
| models | seconds | its models answer |
| registered | operator, stake | it has registered, and staked so many units of 1e-18 token |
| stopped | | it has ended in order |
| waiting | for | nothing can go on until that happens |
| step | text, done, s | what the command that started the run does now, or has done in `s` seconds |
| note | text | what else it has to say |
| down | | the process was killed on purpose |
| error | message | what went wrong, and where |
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Event", "EventWriter", "Tailer", "has_occurred", "occurred", "parse", "replay"]

_POLL_S = 0.05
_HOLD_BACK_S = 0.1  # a line may be this late in its file and still come out in its place


@dataclass(frozen=True)
class Event:
    """One thing that happened: when, to whom, and what."""

    t: float
    who: str
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, otherwise: Any = "") -> Any:
        """The field `name`, or `otherwise` if this event has none."""
        return self.fields.get(name, otherwise)

    def line(self) -> str:
        """The event as it stands in a file, without the line's end."""
        return json.dumps(
            {"t": round(self.t, 4), "who": self.who, "kind": self.kind, **self.fields}, ensure_ascii=False
        )


class EventWriter:
    """Appends one process's events to its file, each line by one write: a reader, or a crash, cannot cut it in two."""

    def __init__(self, path: Path, who: str) -> None:
        self._who = who
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def emit(self, kind: str, **fields: Any) -> Event:
        """Write one event with the present time and return it."""
        event = Event(time.time(), self._who, kind, fields)
        os.write(self._file, f"{event.line()}\n".encode())
        return event

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def parse(line: str, source: str) -> Event:
    """The event on this line; a line that is none becomes an `error` event: one bad line must not hide the rest."""
    try:
        value = json.loads(line)
        t, who, kind = float(value.pop("t")), str(value.pop("who")), str(value.pop("kind"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Event(time.time(), source, "error", {"message": f"unreadable event: {line[:200]}"})
    return Event(t, who, kind, value)


class Tailer:
    """Follows event files, also ones that do not exist yet, and gives their events in the order of time."""

    def __init__(self) -> None:
        self._files: dict[Path, _Tail] = {}
        self._folders: list[Path] = []
        self._pending: list[Event] = []

    def add(self, path: Path) -> None:
        """Follow this file, too, from its beginning."""
        self._files.setdefault(path, _Tail(path))

    def add_folder(self, folder: Path) -> None:
        """Follow every file in this folder whose name ends with .jsonl, also those that come later."""
        self._folders.append(folder)

    def poll(self, now: float | None = None) -> list[Event]:
        """The events since the last call that are old enough for none before them to be outstanding."""
        for folder in self._folders:
            for path in sorted(folder.glob("*.jsonl")):
                self.add(path)
        for tail in self._files.values():
            self._pending += tail.new_events()
        self._pending.sort(key=lambda event: event.t)
        limit = (time.time() if now is None else now) - _HOLD_BACK_S
        ripe = sum(event.t <= limit for event in self._pending)
        taken, self._pending = self._pending[:ripe], self._pending[ripe:]
        return taken

    def rest(self) -> list[Event]:
        """All that is left, at the end of a run."""
        return self.poll(now=float("inf"))

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            for event in self.poll():
                yield event
            await asyncio.sleep(_POLL_S)


def replay(path: Path) -> Iterator[Event]:
    """The events of a recorded file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield parse(line, path.stem)


async def occurred(path: Path, kind: str, *, after: int = 0) -> Event:
    """Wait for an event of this kind in the file, beyond its first `after` bytes; wait for ever if none comes."""
    tail = _Tail(path, after)
    while True:
        for event in tail.new_events():
            if event.kind == kind:
                return event
        await asyncio.sleep(_POLL_S)


def has_occurred(path: Path, kind: str, *, after: int = 0) -> bool:
    """True where an event of this kind is in the file, beyond its first `after` bytes."""
    return any(event.kind == kind for event in _Tail(path, after).new_events())


class _Tail:
    """The part of one file that was not read yet."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset

    def new_events(self) -> list[Event]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:  # its process has not written yet
            return []
        if not whole:
            return []
        self._offset += len(whole) + 1
        lines = whole.decode(errors="replace").split("\n")
        return [parse(line, self._path.stem) for line in lines if line.strip()]
