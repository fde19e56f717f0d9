"""`./quorate run SERVICE`: the agents of a service on this machine, each with its validator, and what they do."""

from __future__ import annotations

import asyncio
import statistics
from contextlib import AsyncExitStack
from pathlib import Path

import click

from quorate.chain.wallet import Wallet
from quorate.loader import load_service, load_settings
from quorate.localnet import processes
from quorate.localnet.agents import agents
from quorate.localnet.run_dir import RunDir
from quorate.localnet.stage import stage
from quorate.localnet.story import Story, duration
from quorate.localnet.tools import Site, Tool, toolbox

__all__ = ["run"]

_POLL_S = 0.05


@click.command()
@click.argument("service", type=click.Path(path_type=Path), metavar="SERVICE")
@click.option("--agents", "count", type=click.IntRange(1, 10), help="How many agents; else what service.yaml says.")
@click.option("--periods", type=click.IntRange(1), help="End after so many periods; else with Ctrl-C.")
@click.option("--keep", is_flag=True, help="With --periods: leave all running until Ctrl-C.")
def run(service: Path, count: int | None, periods: int | None, keep: bool) -> None:
    """Run a service's agents on this machine.

    SERVICE is a folder such as services/hello_world. Each agent has a CometBFT validator of its own; shown is which
    round they are in, how it ended, and how long each agent took for its part. Ctrl-C ends all of it.
    """
    site = Site.here()
    service = service.absolute()  # what is relative is meant from where the command was called
    settings = load_settings(load_service(service), service)
    tools = toolbox([Tool.COMETBFT], site=site)
    processes.run(_run(site.root, service, tools.cometbft, count or settings.agents, periods, keep))


async def _run(root: Path, service: Path, cometbft: Path, count: int, periods: int | None, keep: bool) -> None:
    story, folder = None, None
    try:
        async with stage(root, service.name) as on, AsyncExitStack() as stack:
            story, folder = on.story, on.run
            wallets = [Wallet.create() for _ in range(count)]
            on.name({wallet.address: f"agent-{number}" for number, wallet in enumerate(wallets, 1)})
            what = f"{count} agents, each with its validator" if count > 1 else "1 agent with its validator"
            with on.step(f"start {what}"):
                await stack.enter_async_context(
                    agents(on.supervisor, on.run, root=root, service=service, wallets=wallets, cometbft=cometbft)
                )
            await _periods(on.story, periods)
            if keep:
                on.note(f"kept running: logs in {on.run.logs}, homes in {on.run.scratch}; Ctrl-C ends it")
                await _periods(on.story, None)
    finally:
        if story and folder:
            _summarise(story, folder)


async def _periods(story: Story, count: int | None) -> None:
    """Wait until the service has gone through `count` periods from now on; for ever, if there is no count."""
    first = story.period
    while count is None or story.period < first + count:  # noqa: ASYNC110  (the story is told by other processes)
        await asyncio.sleep(_POLL_S)


def _summarise(story: Story, folder: RunDir) -> None:
    settled = sum(map(len, story.round_ms.values()))
    if settled:
        click.echo(f"\n{settled} rounds in {duration(1000 * story.elapsed_s)}; the median of each:")
        for name, took in story.round_ms.items():
            click.echo(f"  {name:<20} {duration(statistics.median(took)):>8}   ({len(took)} times)")
    click.echo(f"logs and events: {folder.path}")
