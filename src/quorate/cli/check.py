"""`./quorate check`: everything that is judged without running the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

from quorate.localnet.tools import Site, Tool, missing, toolbox

__all__ = ["check"]

_CODE = ("src", "skills", "services", "dao", "agents", "tests", "benchmarks", "third_party")


@dataclass(frozen=True)
class _Check:
    name: str
    argv: tuple[str, ...]
    then: tuple[str, ...] = ()
    """Run after it, where it did not fail."""


@click.command()
@click.option("--fix", is_flag=True, help="Let ruff mend what it can first.")
@click.pass_context
def check(context: click.Context, fix: bool) -> None:
    """Lint, types, import arrows, the core's branches, generated files.

    Runs all of them, shows the output of those that fail, and exits with 1 if one does.
    """
    site = Site.here()
    os.chdir(site.root)
    if fix:
        for arguments in (("check", "--fix", "--quiet"), ("format", "--quiet")):
            subprocess.run([sys.executable, "-P", "-m", "ruff", *arguments, "."], check=False)
    if not missing([Tool.EVM], site=site):
        os.environ.update(toolbox([Tool.EVM], site=site).environment())
    failed = [one.name for one in _checks(site) if not _passes(one)]
    if failed:
        click.echo(f"{len(failed)} failed: {', '.join(failed)}")
    context.exit(1 if failed else 0)


def _checks(site: Site) -> list[_Check]:
    python = (sys.executable, "-P", "-m")
    code = [name for name in _CODE if any((site.root / name).rglob("*.py"))]
    checks = [
        _Check("ruff check", (*python, "ruff", "check", ".")),
        _Check("ruff format", (*python, "ruff", "format", "--check", ".")),
        _Check("mypy", (*python, "mypy", *code)),
        _Check("import arrows", (str(Path(sys.executable).parent / "lint-imports"), "--no-cache")),
    ]
    if (core := Path("tests/unit/fsm")).is_dir():
        measured, told = (*python, "coverage", "run", "-m", "pytest", "-q", str(core)), (*python, "coverage", "report")
        checks.append(_Check("the core's branches", measured, told))  # pyproject.toml asks for every one of them
    for service in sorted((site.root / "services").glob("*/service.py")):
        folder = str(service.parent.relative_to(site.root))
        checks.append(_Check(f"spec {folder}", (*python, "quorate.cli", "spec", folder, "--check")))
    if (site.root / "contracts/export.py").is_file() and not missing([Tool.EVM], site=site):
        checks.append(_Check("contract artifacts", (sys.executable, "-P", "contracts/export.py", "--check")))
    return checks


def _passes(one: _Check) -> bool:
    started = time.monotonic()
    for argv in filter(None, (one.argv, one.then)):
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            break
    click.echo(f"{'ok    ' if done.returncode == 0 else 'FAILED'} {one.name} ({time.monotonic() - started:.1f} s)")
    if done.returncode != 0:
        click.echo("    " + done.stdout.rstrip().replace("\n", "\n    "))
    return done.returncode == 0
