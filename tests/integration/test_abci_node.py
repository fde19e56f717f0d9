"""The node as a child process, with scripts in CometBFT's place: its end is noticed, and it ends with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.abci import Node, NodeExited, NodeUnreachable
from quorate.errors import ConfigError, SetupError

pytestmark = pytest.mark.integration


def _script(folder: Path, text: str) -> Path:
    path = folder / "node.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("code", [0, 7])
async def test_its_end_is_a_fault_whatever_the_exit_code(tmp_path: Path, code: int) -> None:
    node = Node(tmp_path, _script(tmp_path, f"echo the last words; exit {code}"), tmp_path)
    await node.start()
    error = await asyncio.wait_for(node.exited, 5)
    assert isinstance(error, NodeExited)
    assert error.code == code
    assert "the last words" in str(error)
    await node.stop()


async def test_an_end_that_was_asked_for_is_no_fault_and_a_deaf_node_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorate.abci.node._GRACE_S", 0.3)
    node = Node(tmp_path, _script(tmp_path, "trap '' TERM; echo ready; while :; do sleep 0.1; done"), tmp_path)
    await node.start()
    while "ready" not in node.log.read_text():
        await asyncio.sleep(0.01)
    pid = node.pid
    await node.stop()
    await node.stop()
    assert not node.exited.done()
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


async def test_it_dies_with_its_parent_even_where_it_would_not_notice(tmp_path: Path) -> None:
    binary = _script(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    program = (
        "import asyncio, sys; from pathlib import Path; from quorate.abci import Node\n"
        "async def main():\n"
        "    node = Node(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[1]))\n"
        "    await node.start(); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), str(binary), env=environment
    )
    try:
        await _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip() != "", 30)
        pid = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{pid}").exists()
    finally:
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
    await _until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), 3)


async def test_a_missing_program_and_a_long_path_are_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="CometBFT could not be started"):
        await Node(tmp_path, tmp_path / "missing", tmp_path).start()
    with pytest.raises(ConfigError, match="at most 100 fit"):
        await Node(tmp_path, Path("/bin/true"), tmp_path / ("x" * 120)).start()


async def test_a_question_to_a_node_that_does_not_listen_can_be_asked_again(tmp_path: Path) -> None:
    node = Node(tmp_path, Path("/bin/true"), tmp_path)
    with pytest.raises(NodeUnreachable):
        await node.status()
    await node.stop()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def _until(holds: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
