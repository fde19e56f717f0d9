"""Child processes that never outlive the run that started them, and never die unnoticed.

- A child leads a session of its own, so Ctrl-C in the terminal reaches only us, and we end the children in order.
- A child that ends without being asked to is an error (`ChildExited`) in the body of the `Supervisor`, whatever its
  exit code, with the last lines that it wrote, unless whoever started it sees to its end. CometBFT, for one, ends with
  code 0 when its application dies.
- At the end of the `Supervisor` each child gets TERM, and after a grace period KILL; whatever else carries the child's
  mark or belongs to its session (_guard.py) is killed with it.
- When we are killed ourselves (kill -9, out of memory): the kernel kills each child with us (PDEATHSIG; a child's own
  children die likewise if they are started so), and the guard, a small process that holds the other end of a pipe,
  kills all that is left and removes the temporary folders. What remains possible: we and the guard are killed in the
  same instant, and a grandchild that nobody asked the kernel to kill lives on.

PDEATHSIG acts when the *thread* that started the child ends: use a `Supervisor` only in the loop of the main thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from quorate.errors import QuorateError, SetupError
from quorate.localnet._guard import MARKS, Tracked, has_ended, kill_all, processes_of, start_time

__all__ = ["Child", "ChildExited", "Supervisor", "Usage", "run"]

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1
_GRACE_S = 8.0  # vLLM needs the longest to end by itself: about 5 s
_ECHO_S = 0.1  # an error in the block may be the echo of a child's end (a refused connection): time to end wholly
_TAIL_BYTES = 32 * 1024
_LIBC = ctypes.CDLL(None, use_errno=True)


class ChildExited(QuorateError):
    """A process that should have gone on has ended by itself."""

    def __init__(self, child: Child) -> None:
        self.name, self.returncode, self.log = child.name, child.returncode, child.log
        self.last_lines = child.last_lines()
        lines = "".join(f"\n    {line}" for line in self.last_lines) or " (none)"
        super().__init__(
            f"{self.name} ended by itself ({child.how}) after {child.age_s:.0f} s; its last lines:{lines}",
            fix=f"its whole output is in {self.log}",
        )


class Usage(NamedTuple):
    """What one process of a child takes; a page that several processes share is divided among them."""

    pid: int
    command: str
    resident_bytes: int


class Child:
    """One process that runs until we stop it, with all that it starts; made by `Supervisor.spawn`."""

    def __init__(self, name: str, log: Path, process: asyncio.subprocess.Process, mark: str) -> None:
        self.name = name
        self.log = log
        self.tracked = Tracked(process.pid, start_time(process.pid), mark)
        self.is_ending = False
        self._process = process
        self._born = time.monotonic()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the child's session and process group."""
        return self.tracked.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal's number if a signal ended it, or None while it runs."""
        return self._process.returncode

    @property
    def is_running(self) -> bool:
        """Whether the child itself still runs."""
        return self.returncode is None

    @property
    def how(self) -> str:
        """How it has ended, in words."""
        if self.returncode is not None and self.returncode < 0:
            return f"killed by {signal.Signals(-self.returncode).name}"
        return f"exit code {self.returncode}"

    @property
    def age_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._born

    async def wait(self) -> int:
        """Wait for the child's end and return its exit code."""
        return await self._process.wait()

    async def stop(self, grace_s: float = _GRACE_S) -> None:
        """End the child and its descendants: TERM to the child, KILL to all that still runs after `grace_s`."""
        self.is_ending = True
        if self.is_running:
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                self._remark(f"did not end within {grace_s:g} s of TERM: killed")
        await self.kill()

    async def kill(self) -> None:
        """End the child and its descendants at once, as a crash would."""
        self.is_ending = True
        if self.is_running:
            self._signal(signal.SIGKILL)
        await asyncio.to_thread(kill_all, [self.tracked])
        await self._process.wait()

    async def sweep(self) -> None:
        """End what the child, which has ended, has left behind."""
        await asyncio.to_thread(kill_all, [self.tracked])

    def last_lines(self, count: int = 12) -> list[str]:
        """The last lines that the child wrote, oldest first."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]

    def usage(self) -> list[Usage]:
        """The memory of the child and its descendants, process by process."""
        return [usage for pid in processes_of([self.tracked]) if (usage := _usage(pid))]

    def _remark(self, text: str) -> None:
        """Add a line of ours to the child's log: whoever looks for what was slow looks there."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"quorate: {self.name} {text}\n")

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it ended by itself in this moment
            self._process.send_signal(number)


class Supervisor:
    """Starts children and ends them all, newest first, when its `async with` block ends, in whatever way it ends.

    A child that ends by itself cancels the block, which then raises `ChildExited`. Logs go to `logs`/NAME.log.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.children: list[Child] = []
        self._failure: ChildExited | None = None
        self._has_cancelled_owner = False
        self._is_stopping = asyncio.Event()
        self._watchers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Supervisor:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._owner = _current_task()
        self._cancels_before = self._owner.cancelling()
        self._guard = _Guard()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _to_the_end(self._stop_all(may_be_echo=isinstance(error, Exception)))
        if self._has_cancelled_owner:
            self._owner.uncancel()
        is_cancelled_from_outside = self._owner.cancelling() > self._cancels_before
        if is_cancelled_from_outside and not isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError
        if self._failure and not is_cancelled_from_outside and _may_be_replaced(error):
            raise self._failure from (error if isinstance(error, Exception) else None)

    async def spawn(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        may_end: bool = False,
        on_end: Callable[[Child], Awaitable[bool]] | None = None,
    ) -> Child:
        """Start a child whose output goes to `logs`/NAME.log (appended, if it is a restart).

        `env` is added to our own environment. With `may_end` the child's end is nobody's fault; else `on_end` is asked
        about it: True where it has seen to it. Raises `SetupError` if the program cannot be started.
        """
        if self._is_stopping.is_set():
            raise RuntimeError(f"{name} was to be started while the run is being stopped")
        mark = secrets.token_hex(16)
        log = self.logs / f"{name}.log"
        with log.open("ab") as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *map(str, argv),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    env=_environment(mark, env or {}),
                    cwd=cwd,
                    start_new_session=True,
                    preexec_fn=_die_with_parent(os.getpid()),
                )
            except OSError as error:
                raise SetupError(
                    f"{name} could not be started: {argv[0]}: {error.strerror}",
                    fix="`./quorate doctor` shows what is missing",
                ) from error
        child = Child(name, log, process, mark)
        self.children.append(child)
        self._guard.tell("child", *map(str, child.tracked))
        watcher = asyncio.create_task(self._watch(child, may_end, on_end), name=f"watch {name}")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return child

    async def pause(self, seconds: float) -> bool:
        """Wait so long; False at once where the run is being stopped."""
        try:
            await asyncio.wait_for(self._is_stopping.wait(), seconds)
        except TimeoutError:
            return True
        return False

    def remove_if_killed(self, folder: Path) -> None:
        """Have the guard remove this folder if we do not live to do it; `removed` takes it back."""
        self._guard.tell("folder", str(folder))

    def removed(self, folder: Path) -> None:
        """The folder is gone or is to stay: the guard leaves it alone."""
        self._guard.tell("kept", str(folder))

    def usage(self) -> dict[str, list[Usage]]:
        """The memory of all that runs, by the name of the child."""
        return {child.name: child.usage() for child in self.children if child.is_running}

    async def _watch(
        self,
        child: Child,
        may_end: bool,
        on_end: Callable[[Child], Awaitable[bool]] | None,
    ) -> None:
        await child.wait()
        if child.is_ending or may_end or self._failure is not None:
            return
        if on_end is not None and await on_end(child):
            return
        self._failure = ChildExited(child)
        self._has_cancelled_owner = True
        self._owner.cancel()

    async def _stop_all(self, may_be_echo: bool) -> None:
        if may_be_echo:
            await asyncio.sleep(_ECHO_S)
            ended = [child for child in self.children if has_ended(child.tracked)]
            await asyncio.gather(*(child.wait() for child in ended))
            await asyncio.sleep(0)  # its watcher has heard of it before us, and comes first
        self._is_stopping.set()
        for child in self.children:
            child.is_ending = True  # before the first one stops: its end may take others with it
        for child in reversed(self.children):
            await child.stop()
        await asyncio.gather(*self._watchers)
        self._guard.close()


class _Guard:
    """Our end of the pipe to the guard process (see _guard.py)."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("_guard.py")
        read, self._write = os.pipe()
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(script)],
            dict(os.environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)],
            setsid=True,
        )
        os.close(read)
        self._pid = pid

    def tell(self, verb: str, *words: str) -> None:
        line = " ".join((verb, *words))
        with suppress(BrokenPipeError):  # somebody killed the guard: the kernel's own PDEATHSIG still stands
            os.write(self._write, f"{line}\n".encode())

    def close(self) -> None:
        self.tell("bye")
        os.close(self._write)
        os.waitpid(self._pid, 0)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C, TERM and a closed terminal cancel it, so that it cleans up.

    Raises KeyboardInterrupt after Ctrl-C and SystemExit(128 + signal) after the others. A second signal does not wait:
    the process exits, and the guard ends what is left.
    """
    received: list[signal.Signals] = []
    try:
        return asyncio.run(_cancelled_by_signals(main, received))
    except asyncio.CancelledError:
        if not received:
            raise
    raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])


async def _cancelled_by_signals(main: Coroutine[Any, Any, T], received: list[signal.Signals]) -> T:
    task = asyncio.ensure_future(main)

    def cancel(number: signal.Signals) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, cancel, number)
    return await task


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Finish `work` even if we are cancelled meanwhile; the caller looks at `Task.cancelling` afterwards."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
    task.result()


def _may_be_replaced(error: BaseException | None) -> bool:
    """Whether a child's end explains the block's own end better than `error` does."""
    return error is None or isinstance(error, (Exception, asyncio.CancelledError))


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a Supervisor is entered in a task")
    return task


def _environment(mark: str, extra: Mapping[str, str]) -> dict[str, str]:
    marks = ":".join(filter(None, (os.environ.get(MARKS), mark)))
    # SPT_NOENV: programs that set their title (vLLM's workers) shall not overwrite the marks in /proc.
    return {**os.environ, **extra, MARKS: marks, "SPT_NOENV": "1"}


def _die_with_parent(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return before_exec


def _usage(pid: int) -> Usage | None:
    try:
        memory = Path(f"/proc/{pid}/smaps_rollup").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # it has ended meanwhile
        return None
    kib = next((int(line.split()[1]) for line in memory.splitlines() if line.startswith("Pss:")), 0)
    return Usage(pid, command, kib * 1024)
