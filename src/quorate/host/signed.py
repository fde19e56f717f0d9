"""What an agent has signed in rounds that may still go on: one payload for one opening, whatever happens to it between.

An act that runs again after a restart may give another payload (a model's answer, a fresh salt). Two signatures would
be an equivocation, and on record for good. So the signing boundary writes down each payload *before* its signature
leaves, and from then on gives that one again, however often the agent dies.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from quorate.abci import SignedPayload, UnsignedPayload
from quorate.durable import replace_file
from quorate.errors import ConfigError, PeerError, SetupError

__all__ = ["FileMemory", "Memory"]

KEPT_ROUNDS = 8
"""Far more than the boundary signs ahead; what is older is never signed again."""
_FIRST = "nothing before round "
_MAX_LINES = 512  # then the file is written anew, with what is still needed

_Slot = tuple[int, int, str, bytes]


class Memory:
    """The payloads themselves, in memory; a subclass makes them outlive the process."""

    def __init__(self) -> None:
        self._signed: dict[_Slot, SignedPayload] = {}
        self.oldest = 0
        """Payloads for rounds before this one are not signed: what was said there may be forgotten."""

    was_lost = False
    """True while nobody knows what was signed in a former life; `begin_at` ends that."""

    def begin_at(self, oldest: int) -> None:
        """Sign nothing for rounds before `oldest`, though nothing is known of them."""
        self.oldest, self.was_lost = max(self.oldest, oldest), False

    def find(self, payload: UnsignedPayload) -> SignedPayload | None:
        """What was signed for the same round and opening, if anything was."""
        return self._signed.get(_slot(payload))

    def add(self, payload: SignedPayload) -> None:
        """Remember `payload`; it is durable when this returns, and may go out then."""
        self._write(payload)
        self._take(payload)

    def _take(self, payload: SignedPayload) -> None:
        self._signed[_slot(payload)] = payload
        if payload.sequence - KEPT_ROUNDS > self.oldest:
            self.oldest = payload.sequence - KEPT_ROUNDS
            self._signed = {slot: one for slot, one in self._signed.items() if slot[1] >= self.oldest}

    def _write(self, payload: SignedPayload) -> None:
        """Make it durable."""


class FileMemory(Memory):
    """A file beside the agent's keys: a line for each payload, on disk before its signature leaves.

    It is signing state, as the validator's own: who loses it knows no more what it said. It then says nothing in any
    round that it may have spoken in (`was_lost`). Each line has a checksum before it. A last line without its end was
    never durable, thus nobody saw its signature; one with its end that is wrong may have been, or the power failed
    while it was written: the file counts as lost. A wrong line before others was durable once: `ConfigError`.
    """

    def __init__(self, path: Path, *, has_signed_before: bool) -> None:
        super().__init__()
        self._path = path
        self.was_lost = has_signed_before and not path.exists()
        self._file: int | None = None
        self._lines = 0
        self._load()
        if not self.was_lost:
            self._renew()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def begin_at(self, oldest: int) -> None:
        """As `Memory.begin_at`, and for good."""
        super().begin_at(oldest)
        self._renew()

    def _load(self) -> None:
        try:
            first, *lines, torn = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        except ValueError as error:
            raise self._damaged(1, "it is torn") from error
        try:
            self.oldest = int(_checked(first).removeprefix(_FIRST))
        except ValueError as error:
            raise self._damaged(1, error) from error
        for number, line in enumerate(lines, 2):
            try:
                self._take(SignedPayload.decode(bytes.fromhex(_checked(line))))
            except (ValueError, PeerError) as error:
                if number < len(lines) + 1 or torn:
                    raise self._damaged(number, error) from error
                self.was_lost = True

    def _damaged(self, number: int, why: object) -> ConfigError:
        return ConfigError(
            f"{self._path} is damaged in line {number}: {why}; what this agent has signed is not known for certain",
            fix="See to its disk, then remove the file: the agent signs nothing until rounds begin in which it cannot "
            "have signed. Never put an older copy in its place: it would sign other things a second time, an offence.",
        )

    def _renew(self) -> None:
        """Write the file anew with what is needed, in one step."""
        lines = [_with_checksum(f"{_FIRST}{self.oldest}"), *map(_line, self._signed.values())]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, b"".join(lines), mode=0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        self.close()
        self._file, self._lines = os.open(self._path, os.O_WRONLY | os.O_APPEND), len(self._signed)

    def _write(self, payload: SignedPayload) -> None:
        line = _line(payload)
        try:
            if self._file is None or self._lines >= _MAX_LINES:
                self._renew()
            assert self._file is not None  # noqa: S101  # _renew has opened it
            if os.write(self._file, line) != len(line):
                raise OSError("only a part of it found room")
            os.fdatasync(self._file)
        except OSError as error:
            self._lines = _MAX_LINES  # whatever stands at its end now is written anew
            raise self._unwritable(error) from error
        self._lines += 1

    def _unwritable(self, error: OSError) -> SetupError:
        return SetupError(
            f"what the agent signs could not be written to {self._path}: {error}",
            fix="Make room on its disk and start the agent again; nothing was signed.",
        )


def _line(payload: SignedPayload) -> bytes:
    return _with_checksum(payload.encode().hex())


def _with_checksum(content: str) -> bytes:
    return f"{zlib.crc32(content.encode()):08x} {content}\n".encode()


def _checked(line: bytes) -> str:
    content = line[9:].decode("ascii")
    if line + b"\n" != _with_checksum(content):
        raise ValueError("its checksum is wrong")
    return content


def _slot(payload: UnsignedPayload | SignedPayload) -> _Slot:
    return payload.period, payload.sequence, payload.round, payload.opening
