"""`./quorate test`: pytest with the tools that the selected tests need."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from quorate.localnet.tools import PROGRAMS, Site, Tool, missing, toolbox

__all__ = ["test"]


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["--help"]}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def test(arguments: tuple[str, ...]) -> None:
    """Run the tests; sets up what the selected ones need.

    ARGUMENTS are pytest's (`./quorate test -h` shows them). `./quorate test -m "not integration"` takes less than a
    minute and downloads no tools; it uses all cores, as long as it is not asked for one file, -s or --pdb.
    """
    site = Site.here()
    chosen = _absolute(arguments)
    os.chdir(site.root)
    every_core = ["-n", "auto", "--dist", "worksteal"] if _may_share_cores(chosen) else []
    if not _excludes_integration(chosen) and _may_need_tools(chosen):
        tools = toolbox({*_needs(chosen, site), *_ready(site)}, site=site)  # a tool that is there is told in any case
        os.environ.update(tools.environment())
    os.execv(sys.executable, [sys.executable, "-P", "-m", "pytest", *every_core, *chosen])  # noqa: S606  (becomes pytest: Ctrl-C and exit codes are its own)


def _ready(site: Site) -> list[Tool]:
    return [tool for tool in PROGRAMS if not missing([tool], site=site)]


def _needs(arguments: Sequence[str], site: Site) -> set[Tool]:
    """The tools that the selected tests need. pytest is asked only if the answer can change something: it takes
    seconds.
    """
    return _collected_needs(arguments) if missing(PROGRAMS, site=site) else set(PROGRAMS)


def _excludes_integration(arguments: Sequence[str]) -> bool:
    """Whether `-m` says "not integration" and nothing else."""
    joined = list(arguments)
    given = [joined[i + 1] for i, a in enumerate(joined[:-1]) if a == "-m"] + [
        a[2:].removeprefix("=") for a in joined if a.startswith("-m") and a != "-m"
    ]
    return given[-1:] == ["not integration"] or any(
        a in ("--help", "-h", "--version", "--markers", "--fixtures") for a in joined
    )


def _may_share_cores(arguments: Sequence[str]) -> bool:
    """Whether tests may run side by side: what starts servers needs the machine, and who looks on wants order."""
    looks_on = ("-s", "--capture=no", "--pdb", "--trace", "-p", "--collect-only", "--co")
    named = any(Path(argument.partition("::")[0]).exists() for argument in arguments if not argument.startswith("-"))
    return _excludes_integration(arguments) and not named and not any(a in looks_on for a in arguments)


def _may_need_tools(arguments: Sequence[str]) -> bool:
    """False where every named test file, and all that lies beside it, is free of the word that asks for tools.

    Saves collecting twice, which takes longer than the tests of a service.
    """
    named = [Path(argument.partition("::")[0]) for argument in arguments if not argument.startswith("-")]
    paths = [path for path in named if path.exists()]
    files = [file for path in paths for file in (path if path.is_dir() else path.parent).rglob("*.py")]
    return not files or any("integration" in file.read_text(errors="replace") for file in files)


def _collected_needs(arguments: Sequence[str]) -> set[Tool]:
    """Let pytest collect with the user's own arguments, and read which tools the selection asks for (see
    _selection.py).

    If it cannot collect, nothing is set up: the real run then shows why.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "needs"
        environment = {**os.environ, "QUORATE_NEEDS_FILE": str(answer)}
        command = [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-p",
            "quorate.cli._selection",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            *arguments,
        ]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        names = answer.read_text().split() if answer.exists() else []
    return {Tool(name) for name in names}


def _absolute(arguments: Sequence[str]) -> list[str]:
    """Paths given from the user's folder hold from the project's root, too (`tests/x.py::test_y` as well)."""

    def absolute(argument: str) -> str:
        path, separator, rest = argument.partition("::")
        is_path = not argument.startswith("-") and Path(path).exists()
        return f"{Path(path).resolve()}{separator}{rest}" if is_path else argument

    return [absolute(argument) for argument in arguments]
