"""`./quorate setup`: make now what commands otherwise make when they need it."""

from __future__ import annotations

import click

from quorate.localnet.tools import PROGRAMS, Tool, toolbox

__all__ = ["setup"]

# Go and Node are made when something needs them and the system has none; uv and the packages are there when this runs.
_ALL = (Tool.PYTHON, *PROGRAMS)


@click.command()
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([str(tool) for tool in Tool]),
    help="Set up this part only (may be repeated).",
)
@click.option("--verify", is_flag=True, help="Read every cached file again and make damaged parts anew.")
def setup(only: tuple[str, ...], verify: bool) -> None:
    """Set up now what commands otherwise set up when needed.

    About 3.6 GB to fetch and 7 GB on disk, nearly all of it vLLM. Safe to interrupt and to run again, also several
    at a time.
    """
    needs = [Tool(name) for name in only] or list(_ALL)
    tools = toolbox(needs, thorough=verify)
    click.echo("ready: " + ", ".join(sorted(tools.has)))
