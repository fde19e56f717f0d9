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
@click.option("--rss-rounds", default=1000, show_default=True, help="Rounds over which memory is watched.")
@click.option("--table", is_flag=True, help="Also every case of the table: 1, 4 and 7 agents; 5 minutes more.")
def rounds(as_json: bool, seconds: float, repeats: int, rss_rounds: int, table: bool) -> None:
    """Time rounds of four agents beside blocks of CometBFT's own kvstore; about 5 minutes."""
    from benchmarks.rounds import measure, render  # lies in the checkout, not in the wheel

    _find_cometbft()
    figures = asyncio.run(measure(seconds, repeats, rss_rounds, table))
    click.echo(json.dumps(figures, sort_keys=True) if as_json else render(figures))


@bench.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--rounds", default=10_000, show_default=True, help="Length of the chain.")
@click.option("--times", default=4, show_default=True, help="How often an agent is restarted, and how often wiped.")
def endurance(as_json: bool, rounds: int, times: int) -> None:
    """Watch memory and disk over many rounds, then restart and wipe agents; about 8 minutes."""
    from benchmarks.endurance import measure, render  # lies in the checkout, not in the wheel

    _find_cometbft()
    figures = asyncio.run(measure(rounds, times))
    click.echo(json.dumps(figures, sort_keys=True) if as_json else render(figures))


def _find_cometbft() -> None:
    """Name CometBFT to the agents' processes, which read it from the environment."""
    if "QUORATE_COMETBFT" not in os.environ:
        os.environ["QUORATE_COMETBFT"] = str(toolbox([Tool.COMETBFT]).cometbft)
