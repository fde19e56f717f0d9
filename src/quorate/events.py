"""What happens in a run, as JSON lines: each process writes its own file, and the tailer merges them in time order.

A line is one object: `t` (seconds since 1970), `who` ("agent-1"), `kind`, and the fields of that kind; never a secret.
A file that has grown to `MAX_BYTES` is renamed to `NAME.1`, in place of the one before it, and begun anew: a service
that runs for years keeps two. All readers here go on over that, from the older of the two.

| kind | fields | meaning |
|---|---|---|
| ready | address, endpoint, models (an operator's) | the process can do its work |
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
| starting | models, memory_need | an operator loads these models |
| models | seconds | its models answer |
| registered | operator, stake, sent | it has registered, and staked so many units of 1e-18 token; what it had to send |
| stopped | | it has ended in order |
| waiting | for | nothing can go on until that happens |
| step | text, done, s | what the command that started the run does now, or has done in `s` seconds |
| note | text | what else it has to say |
| down | how, again_s | the process has ended, by itself if it says how, and is started again in so many seconds |
| error | message, fix | what went wrong, and where |
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "Event",
    "EventWriter",
    "Mark",
    "Tail",
    "Tailer",
    "has_occurred",
    "last_events",
    "occurred",
    "older",
    "parse",
    "replay",
]

MAX_BYTES = 32 * 1024 * 1024
"""Of one file; a round takes about 1 kB."""
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
            {"t": round(self.t, 4), "who": self.who, "kind": self.kind, **self.fields}, ensure_ascii=False, default=str
        )


class EventWriter:
    """Appends one process's events to its file, each line by one write: a reader, or a crash, cannot cut it in two.

    One writer a file at a time: another one would go on in what this one has renamed.
    """

    def __init__(self, path: Path, who: str, *, max_bytes: int = MAX_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._who, self._max_bytes = path, who, max_bytes
        self._bytes, self._is_torn = 0, False
        self._file = self._open()

    def emit(self, kind: str, **fields: Any) -> Event:
        """Write one event with the present time and return it. `OSError` where there is no room."""
        event = Event(time.time(), self._who, kind, fields)
        line = f"{event.line()}\n".encode(errors="backslashreplace")
        if self._bytes and self._bytes + len(line) > self._max_bytes:
            self._begin_anew()
        if self._is_torn:  # what a full disk, or a crash, left of a line shall not spoil this one
            line = b"\n" + line
        written = os.write(self._file, line)
        self._bytes += written
        self._is_torn = written < len(line)
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        return event

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _begin_anew(self) -> None:
        self._path.replace(older(self._path))
        full, self._file = self._file, self._open()
        os.close(full)

    def _open(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._bytes = os.fstat(file).st_size
        self._is_torn = self._bytes > 0 and os.pread(file, 1, self._bytes - 1) != b"\n"
        return file


def older(path: Path) -> Path:
    """Where the events before those in the file at `path` are, if it was begun anew."""
    return path.with_name(f"{path.name}.1")


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
        self._files: dict[Path, Tail] = {}
        self._folders: list[Path] = []
        self._pending: list[Event] = []

    def add(self, path: Path) -> None:
        """Follow this file, too, from its beginning."""
        self._files.setdefault(path, Tail(path))

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
    """The events of a recorded file, and of the one before it if that is there."""
    for file in (older(path), path):
        if file == path or file.exists():
            with file.open(encoding="utf-8") as lines:
                yield from (parse(line, path.stem) for line in lines if line.strip())


def last_events(path: Path, size: int) -> list[Event]:
    """The events in the last `size` bytes that were written, or in fewer if the file was begun anew twice meanwhile."""
    text, left = b"", size
    with _generations(path) as files:
        for _, file in reversed(files):
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - left))
            text = file.read(left) + b"\n" + text
            left = size - len(text)
            if left <= 0:
                text = text.partition(b"\n")[2]  # the first may be cut
                break
    return [parse(line, path.stem) for line in _lines(text.rpartition(b"\n")[0])]


@dataclass(frozen=True)
class Mark:
    """A place in a file of events, which stays that place when the file gets its other name."""

    first: bytes = b""
    """The first line of the file in which it is; empty: before all of them."""
    offset: int = 0

    @classmethod
    def end_of(cls, path: Path) -> Mark:
        """After all that is written by now."""
        with _generations(path) as files:
            return cls(files[-1][0], files[-1][1].seek(0, os.SEEK_END)) if files else cls()


async def occurred(path: Path, kind: str, *, since: Mark = Mark()) -> Event:
    """Wait for an event of this kind in the file, beyond `since`; wait for ever if none comes."""
    tail = Tail(path, since)
    while True:
        for event in tail.new_events():
            if event.kind == kind:
                return event
        await asyncio.sleep(_POLL_S)


def has_occurred(path: Path, kind: str, *, since: Mark = Mark()) -> bool:
    """True where an event of this kind is in the file beyond `since`, or may have been in what is there no more."""
    tail = Tail(path, since)
    return any(event.kind == kind for event in tail.new_events()) or tail.has_lost


class Tail:
    """The lines of one file that were not read yet; it need not exist."""

    def __init__(self, path: Path, since: Mark = Mark()) -> None:
        self._path = path
        self._at = since
        self.has_lost = False
        """True where lines were never read: the file was begun anew twice since the last look at it."""

    def new_events(self) -> list[Event]:
        """The lines as events."""
        return [parse(line, self._path.stem) for line in self.new_lines()]

    def new_lines(self) -> list[str]:
        """Without those that are blank, or not finished."""
        new: list[str] = []
        with _generations(self._path, self._at.first) as files:
            if self._at.first and files and self._at.first != files[0][0]:
                self.has_lost = True
            for first, file in files:
                file.seek(offset := self._at.offset if first == self._at.first else 0)
                whole, end, _ = file.read().rpartition(b"\n")
                new += _lines(whole)
                self._at = Mark(first, offset + len(whole) + len(end))
        return new


@contextmanager
def _generations(path: Path, known: bytes = b"") -> Iterator[list[tuple[bytes, BinaryIO]]]:
    """The files that hold the lines of `path`, the oldest first, each with its first line, which names it.

    The newest alone where that begins with `known`: nothing in the one before it is new then.
    """
    files: list[tuple[bytes, BinaryIO]] = []
    with ExitStack() as opened:
        for one in (path, older(path)):  # in this order, one that gets its other name just now is found at least once
            try:
                file = opened.enter_context(one.open("rb"))
            except FileNotFoundError:
                continue
            first = file.readline()
            if first.endswith(b"\n") and all(first != of_newer for of_newer, _ in files):
                files.insert(0, (first, file))
            if known and first == known:
                break
        yield files


def _lines(text: bytes) -> list[str]:
    return [line for line in text.decode(errors="replace").split("\n") if line.strip()]
