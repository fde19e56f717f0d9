"""`./quorate demo`: the whole product on one machine, from a proposal to its execution."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quorate.localnet import processes
from quorate.localnet.stage import stage
from quorate.localnet.story import duration
from quorate.localnet.tools import Site, Tool, Tools, toolbox

if TYPE_CHECKING:  # dao/ lies in the checkout, not in the wheel: imported when the command runs
    from dao.demo import DelegateNet, DemoResult

__all__ = ["demo"]


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object as the last line; all else goes to stderr."
)
@click.option("--keep", is_flag=True, help="Leave all running at the end, and say how to look around; Ctrl-C ends it.")
def demo(as_json: bool, keep: bool) -> None:
    """Watch four agents judge a proposal and cast a real vote.

    Starts an EVM chain (anvil), a DAO, two operators that stake and serve models by vLLM, and four agents, each with a
    CometBFT validator. A proposal is made; the agents read it, check it against a written policy, ask the operators,
    agree, and their Safe votes. Then the proposal is queued and executed. Nothing of it outlives the command.
    """
    began = time.monotonic()
    site = Site.here()
    tools = toolbox([Tool.COMETBFT, Tool.EVM, Tool.MODEL_ENV, Tool.MODELS], site=site)
    processes.run(_demo(site.root, tools, began, as_json=as_json, keep=keep))


async def _demo(root: Path, tools: Tools, began: float, *, as_json: bool, keep: bool) -> None:
    from dao.demo import delegate_net, play

    async with stage(root, "Quorate demo", to_stderr=as_json) as on, delegate_net(on, tools, root) as net:
        result = await play(on, net, began=began)
        if keep:
            for line in _how_to_look_around(net, result):
                on.note(line)
            if as_json:
                click.echo(result.to_json())
            await asyncio.Event().wait()
    click.echo(result.to_json() if as_json else _summary(result))


def _summary(result: DemoResult) -> str:
    """What a newcomer should take away, in ten lines."""
    executed = "executed after its timelock: the recipient has the tokens" if result.executed else "not executed"
    return "\n".join(
        [
            "",
            f"The agents agreed: {result.choice}. Their Safe {result.safe} cast one vote ({result.vote_gas:,} gas).",
            f"  reason on-chain   {result.reason}",
            f"  rationale         {result.rationale_file}",
            f"  vote              {result.vote_tx}",
            f"  proposal          {executed}",
            f"  rounds            {result.rounds}; {duration(1000 * result.seconds_to_vote)} from proposal to vote",
            f"  logs              {result.logs}",
            "",
        ]
    )


def _how_to_look_around(net: DelegateNet, result: DemoResult) -> list[str]:
    return [
        *_summary(result).strip().splitlines(),
        "all is left running; Ctrl-C ends it",
        f"  EVM chain (RPC)   {result.chain_url}; governor {result.governor}",
        *(f"  operator          curl {endpoint}/v1/models" for endpoint in net.operators.endpoints),
        "  agents            ./quorate status, ./quorate why, ./quorate logs agent-1 -f",
    ]
