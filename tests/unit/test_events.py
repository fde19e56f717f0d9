"""Events are written whole, kept within a bound, and read once each by whoever follows them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.events import (
    Event,
    EventWriter,
    Mark,
    Tail,
    Tailer,
    has_occurred,
    last_events,
    occurred,
    older,
    parse,
    replay,
)
from quorate.localnet.logbook import Logbook

LINE = len(Event(1763938497.1234, "a", "n", {"i": 100}).line()) + 1


def test_events_of_several_files_come_out_in_time_order(tmp_path: Path) -> None:
    tailer = Tailer()
    for name, times in (("agent-1", (1.0, 3.0)), ("agent-2", (2.0, 4.0))):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(Event(t, name, "act").line() + "\n" for t in times))
        tailer.add(path)
    assert [event.t for event in tailer.poll(now=3.5)] == [1.0, 2.0, 3.0], "4.0 may still be overtaken"
    assert [event.t for event in tailer.rest()] == [4.0]
    assert tailer.rest() == []


def test_an_event_file_may_appear_later_and_end_in_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "agent-1.jsonl"
    tailer = Tailer()
    tailer.add(path)
    assert tailer.rest() == []
    line = Event(1.0, "agent-1", "ready").line()
    path.write_text(line[:10])
    assert tailer.rest() == []
    path.write_text(line + "\n")
    assert [event.kind for event in tailer.rest()] == ["ready"]


def test_a_writers_lines_are_read_back_with_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    writer = EventWriter(path, "agent-1")
    written = writer.emit("settled", round="judge", ms=12.5, text="näh")
    writer.close()
    (read,) = replay(path)
    assert read.fields == written.fields == {"round": "judge", "ms": 12.5, "text": "näh"}
    assert (read.who, read.kind, read.get("round"), read.get("height", 7)) == ("agent-1", "settled", "judge", 7)
    assert json.loads(path.read_text())["t"] == pytest.approx(written.t, abs=1e-3)


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"t": "x", "who": "a", "kind": "b"}', '{"who": "a", "kind": "b"}'])
def test_an_unreadable_line_is_shown_and_hides_no_other(line: str) -> None:
    event = parse(line, "agent-1")
    assert (event.who, event.kind) == ("agent-1", "error")
    assert line in event.get("message")


async def test_following_gives_events_as_they_come(tmp_path: Path) -> None:
    tailer = Tailer()
    path = tmp_path / "a.jsonl"
    tailer.add(path)
    writer = EventWriter(path, "a")
    seen: list[str] = []
    async with asyncio.timeout(5):
        writer.emit("ready")
        async for event in tailer:
            seen.append(event.kind)
            if len(seen) == 2:
                break
            writer.emit("round")
    assert seen == ["ready", "round"]


class _Written:
    """Events that are numbered, in files of ten lines."""

    def __init__(self, path: Path, count: int = 0) -> None:
        self.path, self.count = path, count
        self.writer = EventWriter(path, "a", max_bytes=10 * LINE)

    def emit(self, times: int = 1) -> None:
        for _ in range(times):
            self.writer.emit("n", i=100 + self.count)
            self.count += 1


def _numbers(events: list[Event]) -> list[int]:
    return [event.get("i") - 100 for event in events if event.kind == "n"]


def test_events_take_no_more_than_two_files_of_a_size(tmp_path: Path) -> None:
    written = _Written(tmp_path / "a.jsonl")
    for _ in range(200):
        written.emit()
        assert all(path.stat().st_size <= 10 * LINE for path in tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "a.jsonl.1"}
    found = _numbers(list(replay(written.path)))
    assert found == list(range(found[0], 200))
    assert len(found) > 10


def test_a_process_that_begins_again_goes_on_in_its_file(tmp_path: Path) -> None:
    for life in range(30):
        written = _Written(tmp_path / "a.jsonl", life)
        written.emit()
        written.writer.close()
    assert len(older(tmp_path / "a.jsonl").read_bytes()) <= 10 * LINE
    assert _numbers(list(replay(tmp_path / "a.jsonl")))[-11:] == list(range(19, 30))


@settings(max_examples=50)
@given(steps=st.lists(st.integers(0, 9), max_size=60))
def test_who_follows_reads_each_event_once_over_all_new_files(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int]
) -> None:
    """A look after every 0 to 9 events: fewer than a file holds. Beside it one who comes late, and one for logs."""
    written = _Written(tmp_path_factory.mktemp("events") / "a.jsonl")
    tailer, logbook = Tailer(), Logbook([written.path])
    tailer.add(written.path)
    seen: list[int] = []
    logged: list[int] = []
    for step in steps:
        written.emit(step)
        seen += _numbers(tailer.rest())
        logged += [record.fields["i"] - 100 for record in logbook.new()]
        late = _numbers(Tail(written.path).new_events())
        assert late == list(range(written.count - len(late), written.count))
        assert len(late) >= min(written.count, 10)
    assert seen == logged == list(range(written.count))


def test_who_has_slept_over_a_whole_file_goes_on_with_what_there_is_and_knows_it(tmp_path: Path) -> None:
    written = _Written(tmp_path / "a.jsonl")
    tail = Tail(written.path)
    written.emit(3)
    assert _numbers(tail.new_events()) == [0, 1, 2]
    written.emit(12)
    assert _numbers(tail.new_events()) == list(range(3, 15))
    assert not tail.has_lost
    written.emit(30)
    assert _numbers(tail.new_events()) == list(range(30, 45))
    assert tail.has_lost


@pytest.mark.parametrize("moment", ["before the look", "between the looks", "with no newer file"])
def test_a_file_that_gets_its_other_name_while_it_is_read_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A reader looks at the newer file, then at the older one; a writer that dies may leave the older one alone."""
    written = _Written(tmp_path / "a.jsonl")
    tail, opened = Tail(written.path), Path.open
    written.emit(15)
    seen = _numbers(tail.new_events())
    written.emit(2)

    def amid(path: Path, *arguments: Any) -> Any:
        monkeypatch.undo()
        if moment == "before the look":
            written.emit(7)
        if moment == "with no newer file":
            path.replace(older(path))
        file = opened(path, *arguments)
        if moment != "before the look":
            written.emit(7)
        return file

    monkeypatch.setattr(Path, "open", amid)
    seen += _numbers(tail.new_events())
    written = _Written(written.path, written.count)
    written.emit(2)
    seen += _numbers(tail.new_events())
    assert seen == list(range(written.count))
    assert not tail.has_lost


@pytest.mark.parametrize("look", ["from the beginning", "at the last ones"])
def test_a_first_look_amid_a_change_of_names_takes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    written, opened = _Written(tmp_path / "a.jsonl"), Path.open
    written.emit(15)

    def amid(path: Path, *arguments: Any) -> Any:
        monkeypatch.undo()
        file = opened(path, *arguments)
        written.emit(7)
        return file

    monkeypatch.setattr(Path, "open", amid)
    if look == "at the last ones":
        assert _numbers(last_events(written.path, 5000)) == list(range(10, 20))
    else:
        tail = Tail(written.path)
        assert _numbers(tail.new_events() + tail.new_events()) == list(range(10, 22)), "the first ten are gone"


async def test_what_has_occurred_since_a_mark_is_found_after_the_file_has_another_name(tmp_path: Path) -> None:
    written = _Written(tmp_path / "a.jsonl")
    written.writer.emit("ready")
    written.emit(4)
    since = Mark.end_of(written.path)
    assert not has_occurred(written.path, "ready", since=since)
    written.emit(8)
    assert not has_occurred(written.path, "ready", since=since), "the one in the older file was before the mark"
    waiting = asyncio.create_task(occurred(written.path, "ready", since=since))
    await asyncio.sleep(0)
    assert not waiting.done()
    written.writer.emit("ready", now=True)
    assert (await waiting).get("now")
    assert has_occurred(written.path, "ready", since=since)
    written.emit(40)
    assert has_occurred(written.path, "ready", since=since), "it may have: what came then is there no more"
    assert not has_occurred(written.path, "ready", since=Mark.end_of(written.path))


def test_a_mark_in_what_is_not_there_yet_is_before_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    since = Mark.end_of(path)
    EventWriter(path, "a").emit("ready")
    assert has_occurred(path, "ready", since=since)
    path.rename(older(path))
    path.touch()  # its process died as it began the new file
    assert [event.kind for event in Tail(path).new_events()] == ["ready"]
    assert Mark.end_of(path) != Mark()
    assert not has_occurred(path, "ready", since=Mark.end_of(path))


@pytest.mark.parametrize("count", [3, 10, 11, 14, 25])
def test_the_last_events_are_found_on_both_sides_of_a_new_file(tmp_path: Path, count: int) -> None:
    written = _Written(tmp_path / "a.jsonl")
    assert last_events(written.path, 1000) == []
    written.emit(count)
    for lines in (1, 5, 9):
        found = _numbers(last_events(written.path, lines * LINE + 5))
        assert found == list(range(max(0, count - lines), count))


def test_a_line_that_a_full_disk_has_torn_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = _Written(tmp_path / "a.jsonl")
    written.emit()
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, line: write(file, line[:10]))
        with pytest.raises(OSError, match="No space") as full:
            written.emit()
    assert full.value.errno == errno.ENOSPC
    written.emit()
    assert [event.kind for event in replay(written.path)] == ["n", "error", "n"]


def test_a_line_that_is_torn_at_the_end_of_a_file_spoils_none_in_the_next(tmp_path: Path) -> None:
    written = _Written(tmp_path / "a.jsonl")
    written.emit(10)
    os.truncate(written.path, written.path.stat().st_size - 5)
    written.emit()
    for found in (list(replay(written.path)), Tail(written.path).new_events(), last_events(written.path, 5000)):
        assert _numbers(found) == [*range(9), 10]


def test_a_line_that_a_crash_has_torn_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"t": 1.0, "wh')
    EventWriter(path, "a").emit("ready")
    assert [event.kind for event in replay(path)] == ["error", "ready"]


def test_what_is_no_json_or_no_text_is_written_as_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    EventWriter(path, "a").emit("note", text="half \ud800 of a pair", at=Path("x"))
    (event,) = replay(path)
    assert event.fields == {"text": "half \ud800 of a pair", "at": "x"}
