"""The fuzzer: mutates inputs, keeps those that reach new code or a new answer, and says how to see a crash again.

In-house, because it fits on a page: no wheel to wait for, structure-aware mutations in Python anyway, and its coverage
costs next to nothing once a function's lines are all known.

A target's `run` raises for whatever must not happen (an undeclared error, a broken property) and returns a short label
of what it saw; a label never seen before counts as news, like a line of ours never run before.
"""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import quorate

__all__ = ["CORPUS", "Crash", "Report", "Target", "TooSlow", "fuzz", "kept", "label_of", "mutate_bytes", "mutate_json"]

CORPUS = Path(__file__).parent / "corpus"
LIMIT_S = 10.0
"""Of processor time for one input; they take milliseconds, so only what grows out of all bounds reaches it."""
ROOM_BYTES = 1 << 30
"""Address space for a whole run beyond what it starts with: an allocation that a few bytes ask for becomes a crash."""
_TRIES = 100  # to make a crash smaller
_SOURCE = str(Path(quorate.__file__).parent)
_GENERATED = str(Path(quorate.__file__).parent / "abci/pb")


class Target:
    """What is fuzzed. One instance serves a whole run, so `run` must leave nothing behind that changes a later one."""

    name = ""
    largest = 20_000
    """Bytes of the largest input that is made."""

    def seeds(self) -> Iterable[bytes]:
        """Sound inputs to begin with, beside the kept corpus."""
        return ()

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        """A variation of `data`, perhaps with parts of `other`."""
        return mutate_bytes(data, other, rng)

    def run(self, data: bytes) -> str:
        """Feed `data` to the code; raise for what must not happen, return a label of what did."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the target holds."""


class TooSlow(BaseException):
    """An input that took longer than `LIMIT_S`; no Exception, so that no code under test can catch it."""


@dataclass(frozen=True)
class Crash:
    """An input that broke a property, as small as it was made."""

    data: bytes
    error: BaseException


@dataclass
class Report:
    """What became of a run."""

    target: str
    seed: int
    runs: int = 0
    seconds: float = 0
    grown_bytes: int = 0
    """How far the process's largest memory grew."""
    news: list[bytes] = field(default_factory=list)
    """Inputs beyond the corpus that found something new."""
    labels: set[str] = field(default_factory=set)
    crash: Crash | None = None


def kept(name: str) -> list[bytes]:
    """The kept corpus of a target: a JSON text a line, each character a byte."""
    path = CORPUS / f"{name}.jsonl"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return [json.loads(line).encode("latin-1") for line in lines]


def label_of(error: BaseException) -> str:
    """The kind of an error and its first words, without what differs from input to input."""
    words = re.findall("[a-z]{2,}", re.sub(r"0x\w+|/\S+|'[^']*'", "", str(error)[:200]))
    return f"{type(error).__name__}: {' '.join(words[:7])}"


def fuzz(
    target: Target,
    *,
    seconds: float,
    seed: int = 0,
    is_guarded: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run the corpus, then variations of it, until a crash or the end. `is_guarded`: bound each input's time."""
    rng, report, coverage = random.Random(seed), Report(target.name, seed), _Coverage()
    pool = [*target.seeds(), *kept(target.name)]
    begin, before = time.monotonic(), _peak_bytes()
    said = begin

    def attempt(data: bytes) -> bool:
        report.runs += 1
        label = coverage.run(lambda: _guarded(target, data) if is_guarded else target.run(data))
        is_news = bool(coverage.fresh) or label not in report.labels
        report.labels.add(label)
        return is_news

    try:
        data = b""
        for data in pool:
            attempt(data)
        while time.monotonic() - begin < seconds:
            data = target.mutate(rng.choice(pool), rng.choice(pool), rng)[: target.largest]
            if attempt(data):
                pool.append(data)
                report.news.append(data)
            if (now := time.monotonic()) - said > 10:
                said = now
                say(f"{target.name}: {report.runs / (now - begin):,.0f} runs/s, {len(report.news)} new entries")
    except (Exception, TooSlow) as error:  # any failure is what we look for
        report.crash = Crash(_smaller(target, data, error, is_guarded), error)
    report.seconds, report.grown_bytes = time.monotonic() - begin, _peak_bytes() - before
    return report


def _guarded(target: Target, data: bytes) -> str:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"{len(data)} bytes took longer than {LIMIT_S:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        return target.run(data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def bound_memory() -> None:
    """Let this process take `ROOM_BYTES` more and not a byte beyond: a MemoryError is a crash like any other."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, resource.RLIM_INFINITY))


def _smaller(target: Target, data: bytes, error: BaseException, is_guarded: bool) -> bytes:
    """`data` without the parts that the same kind of crash does not need; hangs are left as they are."""
    if isinstance(error, TooSlow):
        return data
    size = len(data) // 2
    tries = 0
    while size and tries < _TRIES:
        at = 0
        while at < len(data) and tries < _TRIES:
            shorter = data[:at] + data[at + size :]
            tries += 1
            if _fails_alike(target, shorter, error, is_guarded):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def _fails_alike(target: Target, data: bytes, error: BaseException, is_guarded: bool) -> bool:
    try:
        _guarded(target, data) if is_guarded else target.run(data)
    except (Exception, TooSlow) as found:
        return type(found) is type(error) and label_of(found) == label_of(error)
    return False


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Coverage:
    """Which lines of ours an input runs for the first time. A function without a new line left is traced no more."""

    def __init__(self) -> None:
        self.fresh = 0
        self._left: dict[CodeType, set[int]] = {}

    def run(self, call: Callable[[], str]) -> str:
        self.fresh = 0
        before = sys.gettrace()
        if before is not None:  # somebody else measures: leave that alone, labels guide us still
            return call()
        sys.settrace(self._entered)
        try:
            return call()
        finally:
            sys.settrace(None)

    def _entered(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        left = self._left.get(code)
        if left is None:
            is_ours = code.co_filename.startswith(_SOURCE) and not code.co_filename.startswith(_GENERATED)
            left = self._left[code] = {line for *_, line in code.co_lines() if line} if is_ours else set()
        return self._line if left else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lineno in (left := self._left[frame.f_code]):
            left.discard(frame.f_lineno)
            self.fresh += 1
        return self._line


_TELLING = (b"", b"\0", b"\xff", b"\x80", b"0x", b"[", b"{", b'"', b"\\", b"\\ud800", b"-1", b"1e999", b"null", b" ")


def mutate_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes that know nothing of what the bytes mean."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 32, 200)))
        match rng.randrange(7):
            case 0:
                data = data[:at] + data[end:]
            case 1:
                data = data[:at] + rng.randbytes(end - at) + data[end:]
            case 2:
                data = data[:at] + rng.choice(_TELLING) + data[at:]
            case 3:
                data = data[:end] + data[at:end] * rng.choice((1, 2, 8, 200)) + data[end:]
            case 4 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
            case 5:
                start = rng.randint(0, len(other))
                data = data[:at] + other[start : start + rng.choice((1, 4, 16, 64))] + data[end:]
            case _:
                data = data[:at]
    return data


_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**53, 2**63, 2**64, 2**256, -(2**1024), 10**400, 0.5, 1e308, "", " ", "0x", "0x0"),
    *("-0x1", "0x1 ", "0xzz", "0x" + "f" * 64, "0x" + "0" * 40, "0x" + "ab" * 31 + "  ", "-1", "1" * 5000, "\ud800"),
    *("\0", "ä", "a" * 3000, [], {}, [[]], [0] * 60, {"": 0}, "__class__", float("inf"), float("nan")),
)


def mutate_json(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """A JSON value like `value`, changed in one place or a few."""
    if rng.random() < 0.15 or not isinstance(value, (dict, list)) or not value:
        return _odd_leaf(value, rng)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        match rng.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value + [value[at]] * rng.choice((1, 3, 60))
            case _:
                return [*value[:at], mutate_json(value[at], rng, depth + 1), *value[at + 1 :]]
    key = rng.choice(sorted(value))
    match rng.randrange(6):
        case 0:
            return {name: one for name, one in value.items() if name != key}
        case 1:
            return {**value, rng.choice(("", "x", key + " ", "\ud800")): value[key]}
        case _:
            return {**value, key: mutate_json(value[key], rng, depth + 1)}


def _odd_leaf(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str) and value and rng.random() < 0.3:  # of the same length, as exact forms demand
        at = rng.choice((0, 2, len(value) - 2, rng.randrange(len(value))))
        put = rng.choice(("  ", " ", "\t\n", "00", "F", "-", "_", "é"))
        return (value[: max(at, 0)] + put + value[max(at, 0) + len(put) :])[: len(value)]
    if isinstance(value, str) and value and rng.random() < 0.6:
        return mutate_bytes(value.encode("utf-8", "surrogatepass"), b"0x", rng).decode("utf-8", "replace")
    if type(value) is int and rng.random() < 0.4:
        return value + rng.choice((1, -1, 2**32, -value * 2))
    if rng.random() < 0.1:
        for _ in range(rng.choice((2, 30, 70, 2000))):
            value = [value]
        return value
    return rng.choice(_ODD)
