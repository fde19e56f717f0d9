"""`./quorate bench`: commands that print figures; they live in benchmarks/, beside their baselines."""

from __future__ import annotations

import asyncio
import json
import os

import click

from quorate.localnet.tools import Site, Tool, toolbox

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


@bench.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--seconds", default=6.0, show_default=True, help="Length of each measurement.")
@click.option("--repeats", default=3, show_default=True, help="How often ours and CometBFT's take turns.")
def rounds(as_json: bool, seconds: float, repeats: int) -> None:
    """Time rounds of four agents beside blocks of CometBFT's own kvstore; about 4 minutes."""
    from benchmarks.rounds import measure, render  # lies in the checkout, not in the wheel

    if "QUORATE_COMETBFT" not in os.environ:  # the agents' processes read it
        os.environ["QUORATE_COMETBFT"] = str(toolbox([Tool.COMETBFT]).cometbft)
    figures = asyncio.run(measure(seconds, repeats))
    click.echo(json.dumps(figures, sort_keys=True) if as_json else render(figures))
