"""Run another program during set-up: its output to a log, its progress to the screen, its failure to one clear
sentence.

No child outlives us: each is in a session of its own that we end on any error or Ctrl-C, and the kernel ends it if
we are killed. Standard library only (see progress.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quorate.errors import SetupError
from quorate.localnet.tools.progress import Step

__all__ = ["Cancelled", "Command", "explain", "run"]

POLL_S = 0.2
TERM_GRACE_S = 3.0
TAIL_CHARS = 20_000

# Asks the kernel to kill this process when the thread that started it dies, then becomes the real program. A
# program of its own and not a `preexec_fn`: Python code between fork and exec can deadlock when other threads run,
# and here they do.
_TRAMPOLINE = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "try: os.execvp(sys.argv[2], sys.argv[2:])\n"
    "except OSError as error: sys.exit(f'{sys.argv[2]}: {error.strerror}')\n"
)


class Cancelled(Exception):
    """Another step failed or the user pressed Ctrl-C: this one stops without a message of its own."""


@dataclass(frozen=True)
class Command:
    """A program to run: its arguments, folder, environment and the file that receives all its output."""

    argv: Sequence[str | os.PathLike[str]]
    cwd: Path
    environment: Mapping[str, str]
    log: Path


_AGAIN = "run the same command again: what was finished is kept."

# What the programs print when the cause is none of ours, and what a person can do about each.
_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"No space left on device|ENOSPC|os error 28",
        "the disk is full",
        f"Free some space (`df -h ~`), or set XDG_CACHE_HOME to a folder on a larger disk, and {_AGAIN}",
    ),
    (
        r"Disk quota exceeded|EDQUOT|os error 122",
        "your disk quota is used up",
        f"Free some space, or set XDG_CACHE_HOME to a folder outside the quota, and {_AGAIN}",
    ),
    (
        r"[Hh]ash mismatch|DO NOT MATCH|EINTEGRITY|checksum mismatch|SECURITY ERROR",
        "a downloaded file is not the one that the lock names (its hash differs)",
        "Run the same command again; if it stays so, a mirror or proxy in between alters files: tell its owner.",
    ),
    (
        r"certificate verify failed|CERTIFICATE_VERIFY_FAILED|invalid peer certificate"
        r"|UNABLE_TO_(GET|VERIFY)|SELF_SIGNED|x509:",
        "the network's certificate is not trusted",
        f"Behind a TLS-inspecting proxy set SSL_CERT_FILE and NODE_EXTRA_CA_CERTS to its certificate, and {_AGAIN}",
    ),
    (
        r"40[13] (Forbidden|Unauthorized)|status code: 40[13]|HTTP 40[13]|\bE40[13]\b",
        "the package index refused the request",
        f"Check the index and its credentials in your pip, npm or Go settings, and {_AGAIN}",
    ),
    (
        r"dns error|Name or service not known|Temporary failure in name resolution|ENOTFOUND|EAI_AGAIN|no such host"
        r"|Connection refused|ECONNREFUSED|ECONNRESET|ETIMEDOUT|Network is unreachable|No route to host|timed out"
        r"|i/o timeout|error sending request|NewConnectionError|connection reset|tcp connect error",
        "the network or the package index cannot be reached",
        f"Check the connection (behind a proxy set HTTPS_PROXY), and {_AGAIN}",
    ),
    (
        r"No matching distribution|no wheels? with a matching|No solution found|has no usable wheels"
        r"|not found in the package registry|\bE404\b|404 Not Found",
        "the package index does not have a package that the lock names",
        f"If you use a mirror, it may lag behind: try without it, or wait and {_AGAIN}",
    ),
    (
        r"Permission denied|EACCES|os error 13",
        "a file may not be written or run",
        f"Check who owns the cache folder and that its disk is not mounted noexec, and {_AGAIN}",
    ),
    (
        r"[Cc]annot allocate memory|out of memory|ENOMEM|signal: killed|heap out of memory",
        "the machine has too little free memory",
        f"Close other programs (2 GB free are enough to set up), and {_AGAIN}",
    ),
)


def explain(what: str, output: str, status: int, log: Path) -> SetupError:
    """The error for a failed program: the cause in plain words if `output` shows a known one, else its last line
    and the log.
    """
    for pattern, cause, fix in _CAUSES:
        if re.search(pattern, output):
            return SetupError(f"{what} could not be set up: {cause}.", fix=f"{fix} The log: {log}")
    if status == -signal.SIGKILL:
        return SetupError(
            f"{what} could not be set up: the system killed its program, most likely for want of memory.",
            fix=f"Close other programs and run the same command again. The log: {log}",
        )
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), f"exit status {status}")
    return SetupError(
        f"{what} could not be set up: {last[:300]}",
        fix=f"Read the log: {log}. Then run the same command again: what was finished is kept.",
    )


def run(command: Command, *, what: str, step: Step, cancel: threading.Event) -> str:
    """Run `command` to its end and return what it printed; `step` sees the bytes that it writes.

    Raises SetupError in the words of `explain` if it fails, Cancelled (after ending it) if `cancel` is set meanwhile.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    before = step.bytes
    with command.log.open("ab") as log:
        start = log.tell()
        log.write(f"$ {' '.join(str(a) for a in command.argv)}\n".encode())
        log.flush()
        argv = [sys.executable, "-ISc", _TRAMPOLINE, str(os.getpid()), *[os.fspath(a) for a in command.argv]]
        child = subprocess.Popen(
            argv,
            cwd=command.cwd,
            env=dict(command.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while (status := _wait(child, POLL_S)) is None:
                step.bytes = before + _written_bytes(child.pid)
                if cancel.is_set():
                    raise Cancelled
        finally:
            _end(child)
    with command.log.open("rb") as log:
        log.seek(start)
        output = log.read()[-TAIL_CHARS:].decode(errors="replace")
    if status != 0:
        raise explain(what, output.split("\n", 1)[-1], status, command.log)
    return output.split("\n", 1)[-1]


def _wait(child: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child's whole session: politely, then not. The group may outlive its leader, so it is signalled in
    any case.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        if _wait(child, TERM_GRACE_S) is not None and number == signal.SIGKILL:
            return


def _written_bytes(pid: int) -> int:
    """How many bytes the process has handed to write(): for a download, what it unpacked. 0 where the kernel does
    not say.
    """
    try:
        fields = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0
    found = re.search(r"^wchar: (\d+)$", fields, re.MULTILINE)
    return int(found[1]) if found else 0
