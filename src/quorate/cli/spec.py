"""`spec SERVICE [--check]`: the FSM specification beside a service's code."""

from __future__ import annotations

from pathlib import Path

import click

from quorate.errors import ConfigError
from quorate.loader import load_service

__all__ = ["spec", "write_or_compare"]

FILE = "fsm_specification.yaml"


@click.command()
@click.argument("service", type=click.Path(path_type=Path), metavar="SERVICE")
@click.option("--check", is_flag=True, help="Write nothing; fail if the file on disk differs.")
def spec(service: Path, check: bool) -> None:
    """Write SERVICE's FSM specification beside its code.

    SERVICE is a folder such as services/hello_world.
    """
    file = service / FILE
    changed = write_or_compare(file, load_service(service).spec_yaml(), check)
    click.echo(f"{file} {'written' if changed else 'is up to date'}")


def write_or_compare(file: Path, text: str, check: bool) -> bool:
    """Make `file` hold `text`; True if it had to change. With `check`, `ConfigError` in place of a change."""
    if file.is_file() and file.read_text() == text:
        return False
    if check:
        state = "differs from the service's code" if file.is_file() else "does not exist"
        raise ConfigError(f"{file} {state}", fix=f"Run: ./quorate spec {file.parent}")
    file.write_text(text)
    return True
