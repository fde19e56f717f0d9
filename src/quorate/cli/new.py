"""`./quorate new NAME`: a service that runs and has a passing test, ready to be changed."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import click

from quorate.cli._template import agent_files, service_files
from quorate.cli.spec import FILE as SPECIFICATION
from quorate.errors import ConfigError
from quorate.loader import load_service
from quorate.localnet.tools import Site

__all__ = ["create", "new"]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 30


@click.command()
@click.argument("name")
def new(name: str) -> None:
    """Make a service that runs and has a passing test.

    Writes services/NAME and agents/NAME; changes nothing that exists. NAME is small letters, digits and underscores.
    """
    folder = create(Site.here().root, name).relative_to(Site.here().root)
    click.echo(
        f"{folder} is ready: its rounds are in {folder}/service.py. Next:\n"
        f"  ./quorate test {folder}\n"
        f"  ./quorate run {folder}"
    )


def create(root: Path, name: str) -> Path:
    """Write the service `name` below `root` and return its folder; `ConfigError` for a bad name or a taken one."""
    _check_name(name)
    service, agent = root / "services" / name, root / "agents" / name
    for folder in (service, agent):
        if folder.exists():
            raise ConfigError(f"{folder} exists already", fix="Choose another name, or remove that folder yourself.")
    _write(service, service_files(name))
    _write(agent, agent_files(name))
    (service / SPECIFICATION).write_text(load_service(service).spec_yaml())
    return service


def _check_name(name: str) -> None:
    if keyword.iskeyword(name) or not _NAME.fullmatch(name) or len(name) > _LONGEST:
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:_LONGEST]
        is_better = near != name and _NAME.fullmatch(near) and not keyword.iskeyword(near)
        raise ConfigError(
            f"{name!r} cannot name a service: expected up to {_LONGEST} small letters, digits and single underscores, "
            "a letter first, and no word of Python's own",
            fix=f"For example: ./quorate new {near if is_better else 'price_feed'}",
        )


def _write(folder: Path, files: Mapping[PurePosixPath, str]) -> None:
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text)
