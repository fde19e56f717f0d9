"""`./quorate lock`: make the hash locks anew, from nothing younger than the quarantine."""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from quorate.durable import replace_file
from quorate.errors import SetupError
from quorate.localnet.tools import Site, Tool, toolbox
from quorate.localnet.tools.parts import clean_environment, npm_command

__all__ = ["lock"]

QUARANTINE_DAYS = 7  # most malicious releases are found and withdrawn within days

# Each Python lock and what it is made from; no lock names a host, so all work behind a mirror.
_PYTHON: Mapping[str, tuple[str, ...]] = {
    "dev": ("pyproject.toml", "--extra", "agents", "--extra", "dev"),
    "local-model": ("third_party/python/local-model.in",),
    "boot": ("third_party/python/boot.in",),
    "go": ("third_party/python/go.in",),
    "node": ("third_party/python/node.in",),
}
_FLAGS = (
    *("--universal", "--generate-hashes", "--python-version", "3.11"),
    *("--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"),
)


@click.command()
@click.option(
    "--only", multiple=True, type=click.Choice([*_PYTHON, "evm"]), help="Make this lock only (may be repeated)."
)
@click.option(
    "--upgrade", is_flag=True, help="Take the newest versions that are allowed; otherwise those locked now stay."
)
@click.option("--check", is_flag=True, help="Change nothing; fail if a lock does not agree with what it is made from.")
@click.option("--days", default=QUARANTINE_DAYS, show_default=True, help="Take nothing younger than this many days.")
@click.pass_context
def lock(context: click.Context, only: tuple[str, ...], upgrade: bool, check: bool, days: int) -> None:
    """Make the hash locks of all packages anew.

    Versions that are locked now stay, unless --upgrade is given or what a lock is made from no longer allows them.
    Go's modules are pinned by hand in third_party/cometbft/go.mod.
    """
    site = Site.here()
    before = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)).strftime("%Y-%m-%d")
    changed = [name for name in only or (*_PYTHON, "evm") if _make(site, name, before, upgrade=upgrade, check=check)]
    click.echo(f"{'differ' if check else 'changed'}: {', '.join(changed) or 'none'} (nothing younger than {before})")
    context.exit(1 if check and changed else 0)


def _make(site: Site, name: str, before: str, *, upgrade: bool, check: bool) -> bool:
    """Make one lock beside the old one, then put it in place; return whether it differs."""
    current = site.lock("evm/package-lock.json") if name == "evm" else site.root / f"third_party/python/{name}.txt"
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / current.name
        if not upgrade and current.exists():
            new.write_bytes(current.read_bytes())
        if name == "evm":
            _lock_npm(site, new, before)
        else:
            _lock_python(site, name, new, before)
        differs = not current.exists() or new.read_bytes() != current.read_bytes()
        if differs and not check:
            replace_file(current, new.read_bytes())
    return differs


def _lock_python(site: Site, name: str, new: Path, before: str) -> None:
    """With the pinned uv even where the system has a newer one: each version writes the same markers in another way."""
    without_system = replace(site, environment={**site.environment, "PATH": ""})
    toolbox([Tool.UV], site=without_system)
    uv = str(without_system.program(Tool.UV))
    _run(
        [uv, "pip", "compile", *_PYTHON[name], *_FLAGS, "--exclude-newer", before, "-o", str(new)], site, f"{name}.txt"
    )


def _lock_npm(site: Site, new: Path, before: str) -> None:
    for name in ("package.json", ".npmrc"):
        (new.parent / name).write_bytes(site.lock(f"evm/{name}").read_bytes())
    npm = npm_command(toolbox([Tool.NODE], site=site).node)
    _run([*npm, "install", "--package-lock-only", "--ignore-scripts", "--before", before], site, new.name, new.parent)


def _run(argv: Sequence[str | os.PathLike[str]], site: Site, what: str, cwd: Path | None = None) -> None:
    environment = clean_environment(dict(os.environ))
    done = subprocess.run(argv, cwd=cwd or site.root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(
            f"{what} could not be made: {done.stderr.strip()[-800:]}",
            fix="Mend what it names, then run ./quorate lock again.",
        )
