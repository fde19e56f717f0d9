"""A copy of the checkout with a pretended uv, so that `./quorate` runs whole, in a second and without a network.

The pretended uv makes an environment that borrows the packages of the Python that runs the tests; `uv_does` makes
it fail like a real one, or hang. Everything else is real: the script, the locks, the cache, the child processes,
the signals.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30.0

_UV = """#!/bin/sh
echo "$*" >> "{log}"
mode=$(cat "{mode}")
case "$1 $2" in
  "--version "*) echo "uv 99.0.0"; exit 0 ;;
  "venv "*)
    for last; do :; done
    mkdir -p "$last/bin" "$last/lib/python{version}"
    ln -s "{python}" "$last/bin/python"
    ln -s "{packages}" "$last/lib/python{version}/site-packages"
    printf 'home = {home}\\n' > "$last/pyvenv.cfg"; exit 0 ;;
esac
case "$mode" in
  ok) exit 0 ;;
  slow) sleep 1; exit 0 ;;
  hang) echo $$ > "{log}.pid"; sleep 300 & echo $! >> "{log}.pid"; wait; exit 0 ;;
  *) echo "error: $mode" >&2; exit 2 ;;
esac
"""


@dataclass(frozen=True)
class Checkout:
    """A checkout in a temporary folder, with a home and a PATH of its own."""

    root: Path
    home: Path
    bin: Path

    @classmethod
    def make(cls, folder: Path) -> Checkout:
        made = cls(folder / "project", folder / "home", folder / "bin")
        ignored = shutil.ignore_patterns("pb", "artifacts")
        shutil.copytree(ROOT / "src", made.root / "src", ignore=ignored)
        for name in ("python", "cometbft", "evm", "models"):
            source = ROOT / "third_party" / name
            for file in source.iterdir() if source.is_dir() else ():
                if file.is_file():
                    (made.root / "third_party" / name).mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, made.root / "third_party" / name / file.name)
        shutil.copy(ROOT / "quorate", made.root / "quorate")
        for needed in (made.home, made.bin):
            needed.mkdir(parents=True)
        (made.bin / "python3").symlink_to(os.path.realpath(sys.executable))
        made.uv_does("ok")
        fake = _UV.format(
            log=made.uv_log,
            mode=made.home / "mode",
            python=os.path.realpath(sys.executable),
            packages=sysconfig.get_path("purelib"),
            version=f"{sys.version_info.major}.{sys.version_info.minor}",
            home=Path(os.path.realpath(sys.executable)).parent,
        )
        (made.bin / "uv").write_text(fake)
        (made.bin / "uv").chmod(0o755)
        return made

    @property
    def uv_log(self) -> Path:
        return self.home / "uv.log"

    @property
    def cache(self) -> Path:
        return self.home / ".cache/quorate"

    @property
    def environments(self) -> list[Path]:
        """The complete core environments in the cache."""
        return [path for path in self.cache.glob("env-*") if path.is_dir()]

    @property
    def syncs(self) -> int:
        """How often packages were installed."""
        calls = self.uv_log.read_text().splitlines() if self.uv_log.exists() else []
        return sum(1 for call in calls if call.startswith("pip sync"))

    def uv_does(self, what: str) -> None:
        """`ok`, `slow`, `hang`, or the error that it prints."""
        (self.home / "mode").write_text(what)

    def environment(self, **variables: str) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": f"{self.bin}:/usr/bin:/bin", **variables}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "quorate", *arguments],
            cwd=self.root,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `./quorate ARGUMENTS` to its end."""
        process = self.start(*arguments, **variables)
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def hanging_children(self) -> list[int]:
        """The processes of the hanging uv, once it hangs."""
        file = Path(f"{self.uv_log}.pid")
        wait_until(lambda: file.exists() and len(file.read_text().split()) == 2)
        return [int(pid) for pid in file.read_text().split()]


def wait_until(claim: object, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until `claim()` is true."""
    assert callable(claim)
    end = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
