"""The folder of one run: what a user may want to read stays, what only the running processes need goes.

`.quorate/runs/<time>-<id>/` holds logs, events and the run's results. `scratch` holds sockets, keys and the data of
the chains, in memory if there is room: a disk's fsync pauses of up to 440 ms are otherwise what a round waits for.
Sockets need its path to be short (108 bytes is the kernel's limit).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from quorate.errors import ConfigError, SetupError

__all__ = ["RunDir", "find_run", "past_runs", "require_disk", "require_memory", "run_dir"]

MIB = 1024 * 1024
_PREFIX = "quorate-"
_WHERE = "run.json"  # lets another command find the scratch of a run
_OWNER = "owner"  # its lock is held while the run lives, and falls with it, however it ends
_SCRATCH_ROOM = 512 * MIB  # four agents write 13 kB a block each: 512 MiB is about 10,000 blocks
_DISK_ROOM = 64 * MIB
_LONGEST_SCRATCH = 60


@dataclass(frozen=True)
class RunDir:
    """Where one run writes."""

    path: Path
    scratch: Path

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.path / "logs"

    @property
    def events(self) -> Path:
        """One JSON lines file a process; see events.py."""
        return self.path / "events"

    @property
    def name(self) -> str:
        """What the run is called: the time of its start, and a few random letters."""
        return self.path.name

    @property
    def is_alive(self) -> bool:
        """Whether the command that began this run still runs: it holds a lock as long as it lives."""
        try:
            owner = os.open(self.scratch / _OWNER, os.O_RDONLY)
        except OSError:  # the run has ended and removed it
            return False
        try:
            fcntl.flock(owner, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(owner)
        return False


def past_runs(root: Path) -> list[RunDir]:
    """The runs below `root`, the newest first, also those that are over."""
    folders = sorted((root / ".quorate" / "runs").glob("*/"), key=lambda folder: folder.name, reverse=True)
    return [RunDir(folder, _scratch_of(folder)) for folder in folders]


def find_run(root: Path, name: str | None = None, *, alive: bool = True) -> RunDir:
    """The run that `name` begins (or ends) with, else the newest; with `alive`, only one that still runs.

    `ConfigError` where there is none.
    """
    known = past_runs(root)
    named = [run for run in known if name is None or run.name.startswith(name) or run.name.endswith(name)]
    found = next((run for run in named if not alive or run.is_alive), None)
    if found is not None:
        return found
    if named and name is not None:
        raise ConfigError(f"the run {named[0].name} is over", fix=f"What it left is in {named[0].path}.")
    if name is not None:
        raise ConfigError(
            f"no run is named {name}", fix=f"There are {', '.join(run.name for run in known[:5]) or 'none'}."
        )
    last = f" What the last one left is in {known[0].path}." if known else ""
    raise ConfigError(
        f"no service runs from {root}" if alive else f"nothing has run from {root}",
        fix=f"Start one: ./quorate run services/hello_world.{last}",
    )


def _scratch_of(folder: Path) -> Path:
    try:
        return Path(json.loads((folder / _WHERE).read_text())["scratch"])
    except (OSError, ValueError, KeyError, TypeError):  # of an older version, or written half: nothing runs there
        return folder / "scratch"


@contextmanager
def run_dir(root: Path) -> Iterator[RunDir]:
    """Make the folders of a run below `root`/.quorate/runs; remove `scratch` at the end.

    Also removes what runs that were killed have left in memory. Raises `SetupError` if there is no room.
    """
    parent = root / ".quorate" / "runs"
    parent.mkdir(parents=True, exist_ok=True)
    require_disk(parent, _DISK_ROOM, "logs and results")
    name = secrets.token_hex(3)
    path = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    with _scratch(name) as scratch:
        run = RunDir(path, scratch)
        run.logs.mkdir(parents=True)
        run.events.mkdir()
        (path / _WHERE).write_text(json.dumps({"scratch": str(scratch)}) + "\n")
        yield run


def require_disk(folder: Path, needed: int, what: str) -> None:
    """Raise `SetupError` if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SetupError(
            f"{what} need {_size(needed)} in {folder}; {_size(free)} are free",
            fix="free some disk space there and run the command again",
        )


def require_memory(needed: int, what: str) -> None:
    """Raise `SetupError` if the machine, or the container that we are in, has less than `needed` bytes free."""
    free = available_memory()
    if free < needed:
        raise SetupError(
            f"{what} need {_size(needed)} of memory; {_size(free)} are free",
            fix="end other programs, or use a machine with more memory",
        )


def available_memory() -> int:
    """Bytes that new processes can take without swapping: the machine's, or the container's if that has less."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    machine = int(meminfo["MemAvailable"].split()[0]) * 1024
    return min(machine, _container_room(Path("/sys/fs/cgroup"), machine))


def _container_room(cgroup: Path, otherwise: int) -> int:
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:  # not a container, or one of the old kind
        return otherwise
    if limit == "max":
        return otherwise
    return int(limit) - used + int(stat.get("inactive_file", 0))  # the page cache gives way


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    parent = _scratch_parent()
    _remove_abandoned(parent)
    folder = parent / f"{_PREFIX}{name}"
    folder.mkdir(mode=0o700)
    unlocked = folder / "unlocked"
    owner = os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
        unlocked.rename(folder / _OWNER)  # only now, or another run could take the folder for abandoned
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)


def _scratch_parent() -> Path:
    """Memory if it has room, else the folder for temporary files."""
    for candidate in (Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108  (mkdir with mode 700)
        with suppress(OSError):
            fits = len(str(candidate)) <= _LONGEST_SCRATCH - len(_PREFIX) - 8
            if fits and os.access(candidate, os.W_OK) and shutil.disk_usage(candidate).free >= _SCRATCH_ROOM:
                return candidate
    raise SetupError(
        f"neither /dev/shm nor {tempfile.gettempdir()} has {_size(_SCRATCH_ROOM)} free for the chains' data",
        fix="free some space, or set TMPDIR to a folder with a short path that has it",
    )


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of our user whose run is dead: nobody holds their lock."""
    for owner_file in parent.glob(f"{_PREFIX}*/{_OWNER}"):
        with suppress(OSError):  # another user's, in use, or just removed by its run
            owner = os.open(owner_file, os.O_RDWR)
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owner_file.parent, ignore_errors=True)
            finally:
                os.close(owner)


def _size(count: int) -> str:
    return f"{count / MIB:,.0f} MiB" if count < 1024 * MIB else f"{count / 1024 / MIB:,.1f} GiB"
