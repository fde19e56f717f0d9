"""The folder where set-up keeps what it made: `${XDG_CACHE_HOME:-~/.cache}/quorate/NAME-PIN-OS-ARCH-KEY/`.

What holds here: a part is made under a temporary name and renamed when it is complete, so a folder with its final
name is whole. Who makes a part holds its lock (which falls with the process), so parallel set-ups make it once. A
part's record names its files with size, time and hash; `condition` compares them, so a damaged part is noticed
before it is used. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quorate.errors import SetupError
from quorate.localnet.tools.command import Cancelled

__all__ = ["Cache", "Condition", "Entry", "hash_of", "system"]

RECORD = ".quorate-part.json"
LOCK_POLL_S = 0.3


def system() -> str:
    """The operating system and processor that built files are for: `linux-x86_64`."""
    return f"{sys.platform}-{platform.machine()}"


def hash_of(*paths: Path) -> str:
    """The sha256 over the contents of `paths`, in order: the key of what is made from them."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """Where one part lies in the cache, and which of its files its record covers."""

    name: str  # what it is, with pin, system and key: the folder's name
    proof: tuple[str, ...] = ("**/*",)  # globs of the files whose loss or change makes the part damaged


@dataclass(frozen=True)
class Condition:
    """Whether a part can be used. `fault` says in words what is wrong with one that is there but damaged."""

    is_ready: bool
    fault: str = ""


@dataclass(frozen=True)
class Cache:
    """The cache folder. `Cache.of_user` follows the XDG rules."""

    root: Path

    @classmethod
    def of_user(cls, environment: Mapping[str, str]) -> Cache:
        """The cache of the user whose environment this is. XDG says: a path that is not absolute is ignored."""
        base = environment.get("XDG_CACHE_HOME", "")
        home = environment.get("HOME") or "~"
        return cls((Path(base) if os.path.isabs(base) else Path(home).expanduser() / ".cache") / "quorate")

    def folder(self, entry: Entry) -> Path:
        """Where the entry is, or would be."""
        return self.root / entry.name

    def log(self, name: str) -> Path:
        """Where the step of this name writes what its tools say."""
        return self.root / "logs" / f"{name}.log"

    def prepare(self) -> None:
        """Make the folder, or raise SetupError with what to do if that is not possible."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise SetupError(
                f"The cache folder {self.root} cannot be written: {error.strerror}.",
                fix="Make it writable, free some space, or set XDG_CACHE_HOME to a folder that is.",
            ) from error

    def free_bytes(self) -> int:
        """What is free on the disk that the cache is, or will be, on."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def condition(self, entry: Entry, *, thorough: bool = False) -> Condition:
        """Whether `entry` is there and whole: every recorded file has its size and time, or else still its hash.

        `thorough` reads every file again, and of a Python environment every installed file.
        """
        folder = self.folder(entry)
        if not folder.is_dir():
            return Condition(False)
        try:
            files: dict[str, list[object]] = json.loads((folder / RECORD).read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return Condition(False, f"{folder} has no readable record")
        for name, (size, time_ns, sha256) in files.items():
            path = folder / name
            try:
                status = path.stat()
            except OSError:
                return Condition(False, f"{path} is gone")
            if status.st_size != size:
                return Condition(False, f"{path} has {status.st_size} bytes and should have {size}")
            if (thorough or status.st_mtime_ns != time_ns) and hash_file(path) != sha256:
                return Condition(False, f"{path} has been changed")
        fault = _installed_fault(folder) if thorough else ""
        return Condition(not fault, fault)

    def record(self, entry: Entry) -> Mapping[str, object]:
        """What the record says about how a ready part was made: `seconds` and `bytes`."""
        content: dict[str, object] = json.loads((self.folder(entry) / RECORD).read_text())
        return content

    @contextlib.contextmanager
    def locked(self, entry: Entry, *, on_wait: Callable[[str], None], cancel: threading.Event) -> Iterator[None]:
        """Hold the lock of `entry`; `on_wait` hears who has it if that takes time. Raises Cancelled if `cancel` is
        set meanwhile.
        """
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{entry.name}.lock").open("a+") as lock:
            told = False
            while not _try_lock(lock.fileno()):
                if not told:
                    lock.seek(0)
                    on_wait(lock.read().strip() or "unknown")
                    told = True
                if cancel.wait(LOCK_POLL_S):
                    raise Cancelled
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    @contextlib.contextmanager
    def scratch(self, entry: Entry) -> Iterator[Path]:
        """A folder to work in, on the cache's disk; gone afterwards. What an interrupted run left for this entry
        goes first (hold its lock).
        """
        parent = self.root / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{entry.name}.*"):
            remove(left)
        folder = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=parent))
        try:
            yield folder
        finally:
            remove(folder)

    def keep(self, entry: Entry, made: Path, seconds: float) -> None:
        """Give the complete folder `made` its record and its final name, in place of a damaged one if there is one."""
        files = {str(p.relative_to(made)): _fact(p) for p in _covered(made, entry.proof)}
        content = {"entry": entry.name, "seconds": round(seconds, 1), "bytes": size_of(made), "files": files}
        record = made / RECORD
        with record.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        final = self.folder(entry)
        if final.exists():
            final.rename(made.parent / "damaged")  # inside the scratch folder, which is removed
        made.rename(final)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(folder: Path) -> int:
    """The bytes of all files below `folder` (each hard link counted once)."""
    seen: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(parent, name))
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def remove(folder: Path) -> None:
    """Remove a folder whatever modes its files have (Go makes its module cache read-only)."""

    def allow(function: Callable[[str], object], path: str, error: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            os.chmod(path, 0o700)
            function(path)

    shutil.rmtree(folder, onerror=allow)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _covered(folder: Path, globs: tuple[str, ...]) -> list[Path]:
    found = {path for glob in globs for path in folder.glob(glob)}
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def _fact(path: Path) -> list[object]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, hash_file(path)]


def _installed_fault(folder: Path) -> str:
    """What is wrong with the installed Python packages below `folder`, judged by their own RECORD files; nothing if
    all is well. A file that several packages bring (some ship a `docs` folder) may be any one's.
    """
    expected: dict[Path, set[str]] = {}
    for record in folder.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        with record.open(newline="") as file:
            for name, digest, *_ in csv.reader(file):
                if digest.startswith("sha256="):
                    expected.setdefault(record.parent.parent / name, set()).add(digest.removeprefix("sha256="))
    for path, digests in expected.items():
        if not path.is_file():
            return f"{path} is gone"
        if base64.urlsafe_b64encode(bytes.fromhex(hash_file(path))).rstrip(b"=").decode() not in digests:
            return f"{path} has been changed"
    return ""
