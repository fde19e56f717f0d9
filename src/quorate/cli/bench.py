"""`./quorate bench`: commands that print figures; they live in benchmarks/, beside their baselines."""

from __future__ import annotations

import json

import click

from quorate.localnet.tools import Site

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure, and print figures. Absolute times are this machine's; compare what stands in one run."""


@bench.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--cold", is_flag=True, help="Also set everything up in an empty cache: fetches 3.6 GB.")
def demo(as_json: bool, cold: bool) -> None:
    """Run the demo once: set-up, proposal to vote, each round, memory of each process."""
    from benchmarks.demo import measure, render  # lies in the checkout, not in the wheel

    figures = measure(Site.here().root, cold=cold)
    click.echo(json.dumps(figures, sort_keys=True) if as_json else render(figures))
