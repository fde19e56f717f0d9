"""What an agent has signed outlives it: no payload for one opening is ever followed by another one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from quorate.abci import SignedPayload, UnsignedPayload
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


def test_the_file_keeps_a_few_rounds_and_old_ones_are_not_signed_anew(tmp_path: Path) -> None:
    path = tmp_path / "signed.log"
    memory = _memory(path, has_signed_before=False)
    for sequence in range(1, 700):
        memory.add(_signed(replace(WORD, sequence=sequence)))
    assert path.stat().st_size < 300_000
    again = _memory(path)
    assert again.oldest == 691
    with pytest.raises(NotAgreed, match="forgotten"):
        _ask(_boundary(again, sequence=None), replace(WORD, sequence=690))


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


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signed.log"
    _memory(path, has_signed_before=False).add(_signed(WORD))
    path.write_bytes(path.read_bytes().replace(b"nothing", b"n0thing"))
    with pytest.raises(ConfigError, match="damaged"):
        _memory(path)
