"""What an agent has signed outlives it: no payload for one opening is ever followed by another one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quorate.abci import SignedPayload, UnsignedPayload
from quorate.durable import sync_folder
from quorate.errors import ConfigError, SetupError
from quorate.fsm import Period
from quorate.host.agreed import Agreed
from quorate.host.decision_maker import AlreadySigned, NotAgreed, QuorateDecisionMaker, SigningMessage
from quorate.host.signed import FileMemory, Memory
from quorate.testing.process import Key
from tests.chain_of_agents.services import counting

KEY = Key("somebody")
WORD = UnsignedPayload("chain-1", 0, 5, "AddRound", bytes(32), b"1")


class _Killed(BaseException):
    """kill -9."""


def _signed(payload: UnsignedPayload) -> SignedPayload:
    return payload.signed(KEY.address, KEY.sign_digest(payload.digest()))


def _memory(path: Path, has_signed_before: bool = True) -> FileMemory:
    return FileMemory(path, has_signed_before=has_signed_before)


def _boundary(memory: Memory, sequence: int | None = 5) -> QuorateDecisionMaker:
    wallet = SimpleNamespace(crypto_objects={"ethereum": SimpleNamespace(entity=KEY)})
    handler = QuorateDecisionMaker(SimpleNamespace(name="a", address=KEY.address), wallet, {})
    agreed = Agreed()
    if sequence is not None:
        agreed.commit(replace(Period.start(counting, [KEY.address]), sequence=sequence))
    handler.bind(agreed, "chain-1", None, memory)
    return handler


def _ask(handler: QuorateDecisionMaker, request: UnsignedPayload) -> bytes:
    message = SigningMessage(request)
    handler.handle(message)
    return message.answer.result(timeout=0)


def test_what_was_signed_is_found_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "signed.log"
    _memory(path, has_signed_before=False).add(_signed(WORD))
    again = _memory(path)
    assert again.find(replace(WORD, body=b"2")) == _signed(WORD)
    assert again.find(replace(WORD, opening=b"\1" * 32)) is None
    assert path.stat().st_mode & 0o077 == 0


def test_another_payload_for_the_same_opening_is_never_signed(tmp_path: Path) -> None:
    for life in range(3):
        boundary = _boundary(_memory(tmp_path / "signed.log", has_signed_before=life > 0))
        assert _ask(boundary, WORD) == _signed(WORD).signature
        with pytest.raises(AlreadySigned) as refusal:
            _ask(boundary, replace(WORD, body=b"2"))
        assert refusal.value.payload == _signed(WORD)


def test_other_openings_asks_and_ticks_contradict_nothing(tmp_path: Path) -> None:
    boundary = _boundary(_memory(tmp_path / "signed.log", has_signed_before=False))
    for payload in (
        WORD,
        replace(WORD, opening=b"\1" * 32, body=b"2"),
        replace(WORD, round="AddRound/ask", body=b"!STOP"),
        replace(WORD, round="AddRound/ask", body=b"!PAUSE"),
        replace(WORD, round="AddRound/tick", body=b"\0"),
        replace(WORD, round="AddRound/tick", body=b"\1"),
    ):
        assert _ask(boundary, payload) == _signed(payload).signature


@pytest.mark.parametrize("point", ["before", "torn", "after"])
def test_an_agent_that_is_killed_while_it_signs_says_one_thing(tmp_path: Path, point: str) -> None:
    """At the write: before it, in the middle of it, and after it, before the signature has left."""

    class Dying(FileMemory):
        def _write(self, payload: SignedPayload) -> None:
            if point == "before":
                raise _Killed
            super()._write(payload)
            if point == "torn":
                whole = self._path.read_bytes()
                self._path.write_bytes(whole[:-40])
            raise _Killed

    path = tmp_path / "signed.log"
    out: list[bytes] = []
    with pytest.raises(_Killed):
        out.append(_ask(_boundary(Dying(path, has_signed_before=False)), WORD))
    assert out == [], "nothing was signed"
    other = replace(WORD, body=b"2")
    boundary = _boundary(_memory(path))
    if point == "after":  # it is on record, so it stands
        with pytest.raises(AlreadySigned):
            _ask(boundary, other)
    else:
        assert _ask(boundary, other) == _signed(other).signature
        assert _memory(path).find(WORD) == _signed(other)


def test_who_lost_its_memory_is_silent_where_it_may_have_spoken(tmp_path: Path) -> None:
    path = tmp_path / "signed.log"
    with pytest.raises(NotAgreed, match="lost"):
        _ask(_boundary(_memory(path), sequence=None), WORD)
    for _ in range(2):  # also after another restart
        boundary = _boundary(_memory(path))
        for sequence in (5, 6, 7):
            with pytest.raises(NotAgreed, match="forgotten"):
                _ask(boundary, replace(WORD, sequence=sequence))
    later = replace(WORD, sequence=8)
    assert _ask(_boundary(_memory(path), sequence=6), later) == _signed(later).signature


@pytest.mark.parametrize("sequence", [None, 5])
@pytest.mark.parametrize("is_lost", [True, False])
def test_what_contradicts_nothing_is_signed_whatever_was_said_before(
    tmp_path: Path, sequence: int | None, is_lost: bool
) -> None:
    """An agent that took a snapshot ticks in rounds long over while it catches up; a refusal there ended it."""
    memory = _memory(tmp_path / "signed.log", has_signed_before=is_lost)
    if not is_lost:
        memory.begin_at(20)
    boundary = _boundary(memory, sequence)
    for payload in (replace(WORD, round="AddRound/tick"), replace(WORD, round="AddRound/ask", body=b"!STOP")):
        assert _ask(boundary, payload) == _signed(payload).signature
    with pytest.raises(NotAgreed, match=r"forgotten|lost"):
        _ask(boundary, WORD)


def test_the_file_keeps_a_few_rounds_and_old_ones_are_not_signed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.host.signed._MAX_LINES", 20)
    path = tmp_path / "signed.log"
    memory = _memory(path, has_signed_before=False)
    for sequence in range(1, 70):
        memory.add(_signed(replace(WORD, sequence=sequence)))
        assert len(path.read_bytes().splitlines()) <= 21
    again = _memory(path)
    assert again.oldest == 61
    with pytest.raises(NotAgreed, match="forgotten"):
        _ask(_boundary(again, sequence=None), replace(WORD, sequence=60))


def test_a_full_disk_stops_the_signature_and_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "signed.log"
    memory = _memory(path, has_signed_before=False)
    memory.add(_signed(WORD))
    write, torn = os.write, [10]

    def scarce(file: int, data: bytes) -> int:
        return write(file, data[: torn.pop()] if torn else data)

    monkeypatch.setattr("quorate.host.signed.os.write", scarce)
    boundary = _boundary(memory)
    with pytest.raises(SetupError, match="room"):
        _ask(boundary, replace(WORD, sequence=6))
    assert _ask(boundary, replace(WORD, sequence=6)) == _signed(replace(WORD, sequence=6)).signature
    assert _memory(path).find(WORD) == _signed(WORD)


def _filled(path: Path, *sequences: int) -> list[bytes]:
    """The lines of a file in which one payload of each of these rounds is on record."""
    memory = _memory(path, has_signed_before=False)
    for sequence in sequences:
        memory.add(_signed(replace(WORD, sequence=sequence)))
    memory.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_wrong_byte_before_the_last_line_is_refused_with_what_to_do(tmp_path: Path, number: int) -> None:
    """Wherever in the line, and though it still reads well: hex digits of another body, another oldest round."""
    path = tmp_path / "signed.log"
    lines = _filled(path, 5, 6, 7)
    line = lines[number - 1]
    for at in range(0, len(line) - 1, 7 if number > 1 else 1):
        wrong = line[:at] + (b"1" if line[at : at + 1] != b"1" else b"2") + line[at + 1 :]
        path.write_bytes(b"".join([*lines[: number - 1], wrong, *lines[number:]]))
        with pytest.raises(ConfigError, match=f"damaged in line {number}") as refusal:
            _memory(path)
        assert "remove the file" in refusal.value.fix
        assert "older copy" in refusal.value.fix


def test_a_line_is_never_missing_from_before_one_that_was_begun(tmp_path: Path) -> None:
    """The next line is begun only when the one before is on disk: if that is wrong now, somebody may have seen it."""
    path = tmp_path / "signed.log"
    lines = _filled(path, 5, 6, 7)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"0", b"1"), lines[3][:40]]))
    with pytest.raises(ConfigError, match="damaged in line 3"):
        _memory(path)


@pytest.mark.parametrize("left", [0, 1, 9, 200, -1])
def test_a_last_line_without_its_end_was_never_seen(tmp_path: Path, left: int) -> None:
    path = tmp_path / "signed.log"
    lines = _filled(path, 5, 6)
    path.write_bytes(b"".join([*lines[:2], lines[2][:left]]))
    boundary = _boundary(_memory(path))
    other = replace(WORD, sequence=6, body=b"2")
    assert _ask(boundary, other) == _signed(other).signature
    with pytest.raises(AlreadySigned):
        _ask(boundary, replace(WORD, body=b"2"))


def test_a_wrong_last_line_makes_the_agent_silent_where_it_may_have_spoken(tmp_path: Path) -> None:
    """The power failed while the line was written, or it was durable and has rotten: nobody can tell."""
    path = tmp_path / "signed.log"
    lines = _filled(path, 5, 6)
    path.write_bytes(b"".join([*lines[:2], bytes(200), lines[2][200:]]))
    for _ in range(2):  # also after another restart
        boundary = _boundary(_memory(path))
        for sequence in (5, 6, 7):
            with pytest.raises(NotAgreed, match="forgotten"):
                _ask(boundary, replace(WORD, sequence=sequence))
    later = replace(WORD, sequence=8)
    assert _ask(_boundary(_memory(path), sequence=6), later) == _signed(later).signature


@pytest.mark.parametrize("content", [b"", b"\n", b"nothing before round 0\n", b"nothing"])
def test_a_file_that_was_never_begun_so_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signed.log"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged in line 1"):
        _memory(path)


class _PowerCut(BaseException):
    """The machine is dark."""


class _Disk:
    """What of one folder would survive a power cut now: bytes by `fsync` of a file, names by `fsync` of the folder."""

    def __init__(self, folder: Path, cut_at: int, survives: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._left, self._survives = folder, cut_at, survives
        self._names: dict[str, tuple[int, int]] = {}
        self._synced: dict[tuple[int, int], bytes] = {}
        self._held: list[int] = []  # so that no number of a removed file is given again
        self._fsync, self._write, self._replace = os.fsync, os.write, os.replace
        monkeypatch.setattr(os, "fsync", self._sync)
        monkeypatch.setattr(os, "fdatasync", self._sync)
        monkeypatch.setattr(os, "write", lambda *a: self._step(self._write, *a))
        monkeypatch.setattr(os, "replace", lambda *a: self._step(self._replace, *a))

    def _step(self, do: Callable[..., Any], *arguments: Any) -> Any:
        if self._left == 0:
            raise _PowerCut
        self._left -= 1
        return do(*arguments)

    def _sync(self, file: int) -> None:
        self._step(self._note, file)

    def _note(self, file: int) -> None:
        at = Path(f"/proc/self/fd/{file}").resolve()
        if at == self._folder:
            self._names = {path.name: self._known(path) for path in self._folder.iterdir()}
        else:
            self._synced[self._known(at)] = at.read_bytes()

    def _known(self, path: Path) -> tuple[int, int]:
        self._held.append(os.open(path, os.O_RDONLY))
        status = os.fstat(self._held[-1])
        return status.st_dev, status.st_ino

    def after_the_cut(self, folder: Path) -> Path:
        """A folder with what is left; of what was not synced `survives`: nothing, half of the bytes, or all."""
        folder.mkdir()
        if self._survives != "nothing":
            self._names = {path.name: self._known(path) for path in self._folder.iterdir()}
        contents = {(s.st_dev, s.st_ino): file for file in self._held for s in [os.fstat(file)]}
        for name, known in self._names.items():
            synced = self._synced.get(known, b"")
            written = os.pread(contents[known], 1 << 20, 0)
            kept = {"nothing": len(synced), "half": (len(synced) + len(written)) // 2, "all": len(written)}
            (folder / name).write_bytes(synced + written[len(synced) : kept[self._survives]])
        for file in self._held:
            os.close(file)
        return folder


def _contradictions(folder: Path, survives: str, cut_at: int) -> tuple[int, list[str]]:
    """Sign, cut the power at a step of that, sign other things: what left, and what contradicts it."""
    home = folder / f"{survives}-{cut_at}"
    home.mkdir()
    out: list[UnsignedPayload] = []
    words = [replace(WORD, sequence=sequence) for sequence in (5, 6, 7)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("quorate.host.signed._MAX_LINES", 2)  # the file is written anew amid these
        disk = _Disk(home, cut_at, survives, patched)
        try:
            boundary = _boundary(FileMemory(home / "signed.log", has_signed_before=False))
            for word in words:
                _ask(boundary, word)
                out.append(word)
        except _PowerCut:
            pass
    try:
        memory = _memory(disk.after_the_cut(folder / f"{home.name}-after") / "signed.log", has_signed_before=bool(out))
    except ConfigError as error:
        return len(out), [f"{survives}: cut at step {cut_at}: {error}"]
    said = []
    for word in words:
        try:
            _ask(_boundary(memory), replace(word, body=b"2"))
        except NotAgreed:
            continue
        if word in out:
            said.append(f"{survives}: cut at step {cut_at}, round {word.sequence} was signed twice")
    return len(out), said


def _found(folder: Path) -> Iterator[str]:
    for survives in ("nothing", "half", "all"):
        for cut_at in range(100):
            signed, said = _contradictions(folder, survives, cut_at)
            yield from said
            if signed == 3:
                break
        else:
            pytest.fail("the power was always cut")


def test_no_signature_leaves_before_its_record_would_survive_a_power_cut(tmp_path: Path) -> None:
    """Cut at every write, sync and rename, with nothing, half or all of what was not synced still on the disk."""
    assert list(_found(tmp_path)) == []


@pytest.mark.parametrize("bug", ["signs first", "no sync", "no sync when written anew", "forgets the new file's name"])
def test_the_power_cut_finds_who_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    """The control of the test above."""
    write, renew = FileMemory._write, FileMemory._renew

    def without(name: str, do: Callable[..., None]) -> Callable[..., None]:
        def done(*arguments: Any) -> None:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(os, name, lambda _: None)
                do(*arguments)

        return done

    match bug:
        case "signs first":  # and writes with the next one
            late: list[SignedPayload] = []

            def one_late(memory: FileMemory, payload: SignedPayload) -> None:
                late.append(payload)
                if len(late) > 1:
                    write(memory, late[-2])

            monkeypatch.setattr(FileMemory, "_write", one_late)
        case "no sync":
            monkeypatch.setattr(FileMemory, "_write", without("fdatasync", write))
        case "no sync when written anew":
            monkeypatch.setattr(FileMemory, "_renew", without("fsync", renew))
        case "forgets the new file's name":  # a power cut brings the old one back
            named: set[Path] = set()

            def once(at: Path) -> None:
                if at not in named:
                    sync_folder(at)
                named.add(at)

            monkeypatch.setattr("quorate.durable.sync_folder", once)
    assert next(_found(tmp_path), None)
