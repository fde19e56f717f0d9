"""What a person sees while parts are set up: a line before each step, progress during, the time after.

Standard library only: the bootstrap runs this before any package is installed. Everything goes to stderr, so that a
command's stdout stays what a program can read.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TextIO

__all__ = ["Screen", "Step", "in_bytes", "in_seconds"]

TTY_INTERVAL_S = 0.5
LOG_INTERVAL_S = 15.0  # a CI log wants a sign of life, not a film


def in_bytes(count: float) -> str:
    """`count` bytes for people: `28 MB`, `3.3 GB` (decimal units, as package indexes and disks count)."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{max(count / 1e6, 1):.0f} MB" if count else "0 MB"


def in_seconds(seconds: float) -> str:
    """A duration for people: `3.2 s`, `8 s`, `94 s`, `3 min 47 s`."""
    if seconds >= 180:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.1f} s"


@dataclass
class Step:
    """One running step: what it is called, what is expected of it, how far it is. Written by its worker, read by
    the screen.
    """

    name: str
    expected_s: float
    expected_bytes: int = 0
    bytes: int = 0
    note: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    def line(self) -> str:
        """How far it is: bytes against the expectation where bytes are known, else seconds against the expectation."""
        if self.note:
            return f"{self.name}: {self.note} ({in_seconds(self.seconds)})"
        expected = f"about {in_seconds(self.expected_s)}"
        spent = f"{self.seconds:.0f} s of {expected}"
        if self.seconds > self.expected_s:
            spent = f"{self.seconds:.0f} s, {expected} expected"
        if self.expected_bytes:
            return f"{self.name}: {in_bytes(self.bytes)} of about {in_bytes(self.expected_bytes)}, {spent}"
        return f"{self.name}: {spent}"


class Screen:
    """Prints set-up's lines to stderr and keeps a status line fresh while steps run (`with screen:`).

    On a terminal the status is one line, rewritten twice a second; elsewhere it is a line every 15 seconds.
    """

    def __init__(self, stream: TextIO | None = None, *, interval_s: float | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._tty = self._stream.isatty()
        self._interval_s = interval_s if interval_s is not None else (TTY_INTERVAL_S if self._tty else LOG_INTERVAL_S)
        self._steps: list[Step] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None

    def say(self, text: str) -> None:
        """Print one line, above the status line."""
        with self._lock:
            self._clear()
            self._write(f"quorate: {text}\n")

    def begin(self, step: Step, text: str) -> None:
        """Announce `step` with `text` and show its progress from now on."""
        self.say(text)
        with self._lock:
            self._steps.append(step)

    def end(self, step: Step, text: str | None = None) -> None:
        """Show `step` no longer; `text`, if any, says how it ended."""
        with self._lock:
            if step in self._steps:
                self._steps.remove(step)
        if text is not None:
            self.say(text)

    def __enter__(self) -> Screen:
        self._stop.clear()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join()
        with self._lock:
            self._clear()

    def _tick(self) -> None:
        while not self._stop.wait(self._interval_s):
            with self._lock:
                if self._steps:
                    self._show(" | ".join(step.line() for step in self._steps))

    def _show(self, status: str) -> None:
        if self._tty:
            width = shutil.get_terminal_size().columns - 1
            self._write("\r\x1b[K" + status[:width])
        else:
            self._write(f"quorate: ... {status}\n")

    def _clear(self) -> None:
        if self._tty:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
