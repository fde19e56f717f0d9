"""`./quorate why`: why a running service does not move, or that it does."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import click

from quorate.cli._options import json_option, run_option
from quorate.localnet.diagnosis import Diagnosis, diagnose
from quorate.localnet.run_dir import find_run
from quorate.localnet.snapshot import look
from quorate.localnet.story import duration
from quorate.localnet.tools import Site

__all__ = ["why"]


@click.command()
@run_option
@json_option
def why(name: str | None, as_json: bool) -> None:
    """Say why a running service does not move.

    Asks the agents, their nodes, the EVM chain and the operators of the newest run: which round it is in, who has
    not sent and why, what peers, model and chain say, and what to do about it. Changes nothing.
    """
    found = diagnose(asyncio.run(look(find_run(Site.here().root, name))))
    click.echo(json.dumps(asdict(found), sort_keys=True) if as_json else _told(found))


def _told(found: Diagnosis) -> str:
    lines = [found.verdict]
    if found.missing and found.round:
        age = "" if found.since_s is None else f", open for {duration(1000 * found.since_s)}"
        sent = f"{len(found.sent)} of {len(found.sent) + len(found.missing)} have sent"
        lines += ["", f"Round {found.sequence}, {found.round}{age}: {sent}. Not in a block yet:"]
        lines += [f"  {one.agent:<10} {one.why}" for one in found.missing]
    if found.findings:
        lines += ["", "What was found:"]
    for one in found.findings:
        sign = {"stops": "✗", "weakens": "!", "says": "·"}[one.weight]
        lines += [f"  {sign} {one.text}"] + ([f"      {one.fix}"] if one.fix else [])
    return "\n".join(lines)
