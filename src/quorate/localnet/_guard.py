"""Ends what a run has left behind when the run itself was killed; also run as a program of its own.

The program (`python -I -S _guard.py`) reads what the run started from its standard input, a pipe whose other end only
the run holds. The kernel closes that pipe however the run ends. A run that cleaned up says `bye` first; otherwise the
guard kills every process that the run still had and removes its temporary folders. Nothing but the standard library
is imported, and as little of it as will do: the guard stays small and starts in about 10 ms.

How a process is known to be ours, without trusting that a process id was not reused:
- its environment holds the child's random mark (children inherit it; a process may clear it, hence the second way), or
- it is in the session that the child led, and the leader is gone or is still the process that we started.
Each is killed through a file descriptor of the process, opened before it was looked at.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

MARKS = "QUORATE_MARKS"  # environment variable: the marks of all the runs that a process belongs to, colon-separated
_SWEEP_FOR_S = 10.0  # a process may fork while we look, and a busy machine takes its time to end one
_SWEEP_PAUSE_S = 0.02


class Tracked(NamedTuple):
    """One child of the run: its process id (which is its session's, too), when it started, and its mark."""

    pid: int
    started: int
    mark: str


class _Stat(NamedTuple):
    state: str
    session: int
    started: int


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if there is none. With the id it names one process."""
    stat = _stat(pid)
    return stat.started if stat else 0


def has_ended(child: Tracked) -> bool:
    """Whether the child itself has, though its parent may not have looked yet."""
    stat = _stat(child.pid)
    return stat is None or stat.state in "ZX" or stat.started != child.started


def processes_of(children: Iterable[Tracked]) -> list[int]:
    """The ids of all living processes that belong to these children: themselves and their descendants."""
    signs = _Signs.of(children)
    return [pid for pid in _all_pids() if signs.are_on(pid)]


def kill_all(children: Iterable[Tracked]) -> list[int]:
    """Kill these children and their descendants; return the ids of those that had to be killed."""
    signs = _Signs.of(children)
    killed: list[int] = []
    deadline = time.monotonic() + _SWEEP_FOR_S
    while (found := [pid for pid in _all_pids() if signs.are_on(pid)]) and time.monotonic() < deadline:
        killed += [pid for pid in found if _kill(pid, signs) and pid not in killed]
        time.sleep(_SWEEP_PAUSE_S)
    return killed


class _Signs(NamedTuple):
    """What tells the processes of some children from all others."""

    marks: tuple[bytes, ...]
    sessions: frozenset[int]

    @classmethod
    def of(cls, children: Iterable[Tracked]) -> _Signs:
        tracked = list(children)
        sessions = (child.pid for child in tracked if start_time(child.pid) in (0, child.started))
        return cls(tuple(child.mark.encode() for child in tracked), frozenset(sessions))

    def are_on(self, pid: int) -> bool:
        stat = _stat(pid)
        if stat is None or stat.state in "ZX":  # a zombie has ended: it only waits for its parent to look
            return False
        return stat.session in self.sessions or any(mark in _environment(pid) for mark in self.marks)


def _all_pids() -> list[int]:
    own = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]


def _stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold spaces and parentheses
    except OSError:  # it has ended meanwhile
        return None
    return _Stat(fields[0].decode(), int(fields[3]), int(fields[19]))


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:  # it has ended meanwhile, or is another user's
        return b""


def _kill(pid: int, signs: _Signs) -> bool:
    """Kill `pid` if it is ours; the descriptor makes sure that the process killed is the one that was looked at."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:  # it has ended meanwhile
        return False
    try:
        if not signs.are_on(pid):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def main() -> None:
    """Follow the run until its end of the pipe closes; then clean up, unless it said that it has."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # the pipe alone says when the run is over
    children: dict[str, Tracked] = {}
    folders: set[str] = set()
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "bye":
            return
        if verb == "child":
            pid, started, mark = rest.split(" ")
            children[mark] = Tracked(int(pid), int(started), mark)
        elif verb == "gone":
            children.pop(rest, None)
        elif verb == "folder":
            folders.add(rest)
        elif verb == "kept":
            folders.discard(rest)
    kill_all(children.values())
    if folders:
        import shutil  # slow to import, and rarely needed

        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
