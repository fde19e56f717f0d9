"""`./quorate status`: where a running service is, agent by agent."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import click

from quorate.cli._options import json_option, run_option
from quorate.localnet.diagnosis import plain_round
from quorate.localnet.run_dir import find_run
from quorate.localnet.snapshot import AgentView, Snapshot, look
from quorate.localnet.tools import Site

__all__ = ["status"]

_ROW = "  {:<10} {:<9} {:>7} {:>7} {:>7}  {:<5} {:<6} {:<10} {}"


@click.command()
@run_option
@json_option
def status(name: str | None, as_json: bool) -> None:
    """Show where a running service is.

    One line an agent: its block, its round, whether it has sent, and with whom it is connected. `why` explains it.
    """
    seen = asyncio.run(look(find_run(Site.here().root, name)))
    click.echo(json.dumps(asdict(seen), sort_keys=True) if as_json else _table(seen))


def _table(seen: Snapshot) -> str:
    part = seen.part
    where = f"round {part.sequence} ({plain_round(part.round)}), period {part.period}" if part else "nobody answers"
    rest = ", its chain rests" if part and part.is_asleep else ""
    lines = [f"{seen.service}: {where}{rest}; run {seen.run}, chain {seen.chain_id}", ""]
    lines.append(_ROW.format("agent", "process", "pid", "block", "round", "sent", "peers", "coins", "address"))
    lines += [_line(agent, is_member=agent in seen.members) for agent in seen.agents]
    if seen.chain is not None:
        what = seen.chain.problem or f"block {seen.chain.block}"
        lines += ["", f"  EVM chain {seen.chain.url}: {what}"]
    for one in seen.operators:
        lines.append(f"  {one.name} {one.url}: {one.problem or 'is well'}")
    if part and part.next_height:
        lines.append(f"  version {part.next_version} of the code is agreed from block {part.next_height} on")
    for offence in part.offences if part else ():
        lines.append(f"  {seen.name_of(offence.member)}: {offence.kind} in round {offence.sequence}")
    return "\n".join(lines)


def _line(agent: AgentView, *, is_member: bool) -> str:
    part = agent.part
    block, sequence, sent = ("–", "–", "–")
    if part is not None:
        block, sequence, sent = str(part.height), str(part.sequence), "yes" if agent.address in part.voted else "no"
    peers = "–" if agent.peers is None else str(len(agent.peers))
    coins = "–" if agent.balance_wei is None else f"{agent.balance_wei / 10**18:.4g}"
    life = agent.life if agent.life != "running" or agent.node_life == "running" else f"node {agent.node_life}"
    pid = agent.pid or "–"
    who = agent.address if is_member else f"{agent.address} (no member)"
    return _ROW.format(agent.name, life, pid, block, sequence, sent, peers, coins, who)
