"""A run's children: none outlives it, none dies unnoticed. The children here are small shells and Pythons."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.errors import SetupError
from quorate.localnet import processes
from quorate.localnet.processes import Child, ChildExited, Supervisor

SLEEP = ("sleep", "1000")
STUBBORN = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
LONG_S = 60.0
"""More than any of this takes on a machine that has other work."""
ROOT = Path(__file__).parents[2]

A_RUN = """
import asyncio, sys
from pathlib import Path
from quorate.localnet.processes import Supervisor, run

async def main():
    async with Supervisor(Path(sys.argv[1])) as supervisor:
        supervisor.remove_if_killed(Path(sys.argv[1]) / "scratch")
        (Path(sys.argv[1]) / "scratch").mkdir()
        # The second child starts a process in a session of its own, as a badly behaved server might.
        a = await supervisor.spawn("a", ["sleep", "1000"])
        b = await supervisor.spawn("b", ["sh", "-c", "setsid sleep 1001 & echo $!; wait"])
        while not b.last_lines():
            await asyncio.sleep(0.01)
        print(a.pid, b.pid, b.last_lines()[0], flush=True)
        await asyncio.sleep(1000)

run(main())
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def comes_true(claim: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LONG_S
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.01)
    return claim()


def all_end(pids: list[int]) -> bool:
    return comes_true(lambda: not any(map(is_alive, pids)))


async def says_something(*children: Child) -> None:
    """What a shell is told to do before it speaks, such as a trap, is done then."""
    while not all(child.last_lines() for child in children):
        await asyncio.sleep(0.01)


def start_run(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process of its own that supervises three; returns it and their ids."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
    run = subprocess.Popen([sys.executable, "-c", A_RUN, str(folder)], stdout=subprocess.PIPE, text=True, env=env)
    assert run.stdout is not None
    pids = [int(word) for word in run.stdout.readline().split()]
    assert len(pids) == 3
    return run, pids


async def test_children_are_ended_when_the_block_ends(tmp_path: Path) -> None:
    async with Supervisor(tmp_path) as supervisor:
        pids = [(await supervisor.spawn(name, SLEEP)).pid for name in ("a", "b")]
        assert all(map(is_alive, pids))
    assert not any(map(is_alive, pids))


async def test_children_are_ended_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Supervisor(tmp_path) as supervisor:
            child = await supervisor.spawn("a", SLEEP)
            raise ZeroDivisionError
    assert not is_alive(child.pid)


async def test_children_are_ended_when_the_block_is_cancelled(tmp_path: Path) -> None:
    pids: list[int] = []

    async def body() -> None:
        async with Supervisor(tmp_path) as supervisor:
            pids.append((await supervisor.spawn("a", SLEEP)).pid)
            await asyncio.sleep(1000)

    task = asyncio.create_task(body())
    while not pids:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_alive(pids[0])


async def test_the_newest_child_is_ended_first(tmp_path: Path) -> None:
    says_when = ("sh", "-c", "trap 'date +%s%N; exit 0' TERM; echo up; while :; do sleep 0.01; done")
    async with Supervisor(tmp_path) as supervisor:
        children = [await supervisor.spawn(name, says_when) for name in ("a", "b")]
        await says_something(*children)
    first, second = (int(child.last_lines()[-1]) for child in children)
    assert second < first


async def test_a_child_that_will_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    async with Supervisor(tmp_path) as supervisor:
        child = await supervisor.spawn("stubborn", STUBBORN)
        await says_something(child)
        pids = [usage.pid for usage in child.usage()]
        await child.stop(grace_s=0.1)
        assert child.pid in pids
        assert not any(map(is_alive, pids))
        assert child.last_lines() == ["up", "quorate: stubborn did not end within 0.1 s of TERM: killed"]


async def test_the_memory_of_a_child_counts_its_descendants(tmp_path: Path) -> None:
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.spawn("parent", ["sh", "-c", "sleep 1000 & wait"])

        def is_counted() -> bool:
            """Not at once: each begins as a copy of the process that starts it, and has nothing for a moment."""
            used = supervisor.usage()["parent"]
            commands = sorted(usage.command.split()[:1] for usage in used)
            return commands == [["sh"], ["sleep"]] and all(0 < usage.resident_bytes < 50_000_000 for usage in used)

        assert comes_true(is_counted), supervisor.usage()


async def test_a_grandchild_with_a_session_of_its_own_is_found(tmp_path: Path) -> None:
    async with Supervisor(tmp_path) as supervisor:
        child = await supervisor.spawn("parent", ["sh", "-c", "setsid sleep 1000 & echo $!; wait"])
        await says_something(child)
        grandchild = int(child.last_lines()[0])
        assert is_alive(grandchild)
        await child.stop()
        assert not is_alive(grandchild)


@pytest.mark.parametrize("code", [0, 3])
async def test_a_child_that_ends_by_itself_fails_the_block_with_its_last_lines(tmp_path: Path, code: int) -> None:
    with pytest.raises(ChildExited, match=f"exit code {code}") as caught:
        async with Supervisor(tmp_path) as supervisor:
            other = await supervisor.spawn("other", SLEEP)
            await supervisor.spawn("node", ["sh", "-c", f"echo consensus failure; exit {code}"])
            await asyncio.sleep(1000)
    assert caught.value.name == "node"
    assert caught.value.last_lines == ["consensus failure"]
    assert "consensus failure" in str(caught.value)
    assert not is_alive(other.pid)


async def test_an_error_that_a_childs_end_caused_is_explained_by_that_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late our own loop hears of the end: the kernel knows of it at once."""
    monkeypatch.setattr(processes, "_ECHO_S", 0)
    with pytest.raises(ChildExited, match="killed by SIGKILL") as caught:
        async with Supervisor(tmp_path) as supervisor:
            child = await supervisor.spawn("server", SLEEP)
            os.kill(child.pid, signal.SIGKILL)
            assert all_end([child.pid])  # and nobody here has looked yet
            raise ConnectionRefusedError
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_a_child_that_we_killed_or_that_may_end_is_no_error(tmp_path: Path) -> None:
    async with Supervisor(tmp_path) as supervisor:
        child = await supervisor.spawn("a", SLEEP)
        await child.kill()
        once = await supervisor.spawn("b", ["true"], may_end=True)
        assert await once.wait() == 0
        await asyncio.sleep(0.05)
    assert child.returncode == -signal.SIGKILL


async def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    async with Supervisor(tmp_path) as supervisor:
        with pytest.raises(SetupError, match="/nowhere/anvil: No such file"):
            await supervisor.spawn("anvil", ["/nowhere/anvil"])


async def test_a_restarted_child_continues_its_log(tmp_path: Path) -> None:
    async with Supervisor(tmp_path) as supervisor:
        for word in ("one", "two"):
            await (await supervisor.spawn("a", ["echo", word], may_end=True)).wait()
    assert (tmp_path / "a.log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_run_and_all_that_it_started(tmp_path: Path, number: signal.Signals, code: int) -> None:
    run, pids = start_run(tmp_path)
    run.send_signal(number)
    assert run.wait(timeout=LONG_S) == code
    assert not any(map(is_alive, pids))


def test_kill_9_of_the_run_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    run, pids = start_run(tmp_path)
    assert (tmp_path / "scratch").exists()
    run.kill()
    run.wait(timeout=LONG_S)
    assert all_end(pids)
    assert comes_true(lambda: not (tmp_path / "scratch").exists())


def test_a_second_signal_does_not_wait_for_a_stubborn_child(tmp_path: Path) -> None:
    run, pids = start_run(tmp_path)
    os.kill(pids[0], signal.SIGSTOP)  # it cannot act on TERM now
    run.send_signal(signal.SIGINT)
    assert all_end(pids[1:]), "the first signal has been heard: two that come together are one"
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=LONG_S) == 130, "after the wait for the child it would be that of one signal"
    assert all_end(pids)
