"""Ports, folders and event files of a run on one machine."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
from pathlib import Path

import pytest

from quorate.errors import ConfigError, SetupError
from quorate.localnet import run_dir as run_dir_module
from quorate.localnet.events import Event, EventWriter, Tailer, parse, replay
from quorate.localnet.ports import held_ports, require_free
from quorate.localnet.run_dir import available_memory, find_run, require_disk, require_memory, run_dir


def test_held_ports_differ_and_a_server_can_take_one_while_it_is_held() -> None:
    with held_ports(3) as ports, socket.create_server(("127.0.0.1", ports[0])):
        assert len(set(ports)) == 3


def test_nobody_who_asks_for_any_port_gets_a_held_one() -> None:
    with held_ports(1) as (port,):
        others = [socket.socket() for _ in range(200)]
        for other in others:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", 0))
        assert port not in {other.getsockname()[1] for other in others}
        for other in others:
            other.close()


def test_a_busy_port_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SetupError, match=f"port {port} .*in use") as caught:
            require_free(port)
        assert "name another port" in caught.value.fix
    assert require_free(port) == port


def test_a_run_keeps_its_logs_and_removes_its_scratch(tmp_path: Path) -> None:
    with run_dir(tmp_path) as run:
        assert all(folder.is_dir() for folder in (run.logs, run.events, run.scratch))
        assert len(str(run.scratch)) < 60, "sockets live below it"
        (run.logs / "a.log").write_text("kept")
    assert (run.logs / "a.log").read_text() == "kept"
    assert run.path.parent == tmp_path / ".quorate" / "runs"
    assert not run.scratch.exists()


def test_a_running_run_is_found_by_other_commands_and_one_that_is_over_only_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no service runs from"):
        find_run(tmp_path)
    with run_dir(tmp_path) as run:
        assert find_run(tmp_path) == run
        assert find_run(tmp_path, run.name[-6:]) == run
        with pytest.raises(ConfigError, match="no run is named nonsense") as error:
            find_run(tmp_path, "nonsense")
        assert run.name in error.value.fix
    with pytest.raises(ConfigError, match="no service runs from"):
        find_run(tmp_path)
    with pytest.raises(ConfigError, match=f"the run {run.name} is over"):
        find_run(tmp_path, run.name)
    assert find_run(tmp_path, alive=False) == run


def test_a_run_removes_what_a_dead_run_left_and_not_what_a_living_one_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_dir_module, "_scratch_parent", lambda: tmp_path)
    dead = tmp_path / "quorate-dead"
    dead.mkdir()
    (dead / "owner").touch()
    with run_dir(tmp_path) as living, run_dir(tmp_path) as other:
        assert living.scratch != other.scratch
        assert all(run.scratch.exists() for run in (living, other))
        assert not dead.exists()


def test_an_abandoned_folder_is_known_by_its_lock_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir_module, "_scratch_parent", lambda: tmp_path)
    used = tmp_path / "quorate-used"
    used.mkdir()
    with (used / "owner").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with run_dir(tmp_path):
            assert used.exists()
    with run_dir(tmp_path):
        assert not used.exists()


def test_too_little_disk_or_memory_says_how_much_is_needed_and_there(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"the logs need 1,073,741,824.0 GiB .* are free"):
        require_disk(tmp_path, 2**60, "the logs")
    with pytest.raises(SetupError, match=r"two model servers need 1,073,741,824.0 GiB of memory; .* are free"):
        require_memory(2**60, "two model servers")
    require_disk(tmp_path, 1, "a byte")
    require_memory(1, "a byte")


def test_a_container_may_have_less_memory_than_its_machine(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200\n")
    assert run_dir_module._container_room(tmp_path, otherwise=10**9) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert run_dir_module._container_room(tmp_path, otherwise=10**9) == 10**9
    assert available_memory() > 0


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


def test_the_environment_of_the_tests_holds_no_secret_of_a_run() -> None:
    assert "QUORATE_PASSPHRASE" not in os.environ
