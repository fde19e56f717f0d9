"""Ports, folders and event files of a run on one machine."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from quorate.errors import ConfigError, SetupError
from quorate.localnet import run_dir as run_dir_module
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


def test_the_environment_of_the_tests_holds_no_secret_of_a_run() -> None:
    assert "QUORATE_PASSPHRASE" not in os.environ
