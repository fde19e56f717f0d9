"""`./quorate graph SERVICE`: the rounds of a service and what leads from one to the next, as a diagram."""

from __future__ import annotations

from pathlib import Path

import click

from quorate.cli._drawing import Diagram, mermaid, svg
from quorate.loader import load_service

__all__ = ["graph"]

_WRITERS = {"mermaid": mermaid, "svg": svg}


@click.command()
@click.argument("service", type=click.Path(path_type=Path), metavar="SERVICE")
@click.option(
    "--format", "form", type=click.Choice(list(_WRITERS)), default="mermaid", show_default=True, help="What to write."
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write to this file; else to standard output.")
def graph(service: Path, form: str, output: Path | None) -> None:
    """Draw a service's rounds.

    SERVICE is a folder such as services/hello_world. The same service always gives the same bytes.
    """
    drawn = _WRITERS[form](Diagram.of(load_service(service)))
    if output is None:
        click.echo(drawn, nl=False)
    else:
        output.write_text(drawn)
        click.echo(f"{output} written")
