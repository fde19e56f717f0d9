"""`./quorate ask EVENT`: ask the agents of a running service for an interrupt, and wait until it happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from quorate.cli._options import agents_option, json_option, run_option
from quorate.host.agent_file import AgentFile
from quorate.host.control import NoAgent, tell
from quorate.localnet.diagnosis import plain_round
from quorate.localnet.run_dir import find_run
from quorate.localnet.snapshot import agent_files, named
from quorate.localnet.tools import Site

__all__ = ["Answer", "ask", "request"]

_POLL_S = 0.2


@dataclass(frozen=True)
class Answer:
    """What came of asking for an interrupt."""

    event: str
    happened: bool
    """It began after it was asked for, or was going on already."""
    asking: tuple[str, ...]
    """The agents, by name, that want it or whose request stands in a block; once it has begun, nobody needs to."""
    needed: int
    members: int
    sequence: int
    round: str
    """Where the service is now."""
    silent: Mapping[str, str]
    """The agents that gave no answer, each with the reason."""


@click.command()
@click.argument("event")
@run_option
@agents_option
@click.option("--wait", "wait_s", default=30.0, show_default=True, help="Seconds to wait for it.")
@click.option("--withdraw", is_flag=True, help="Let the agents ask no more.")
@json_option
def ask(event: str, name: str | None, chosen: tuple[str, ...], wait_s: float, withdraw: bool, as_json: bool) -> None:
    """Ask a running service's agents for an interrupt.

    EVENT is an interrupt of the service, such as HALT: its rounds are left for it as soon as a quorum of agents asks.
    Each agent's own user decides for that agent; on one machine, all of them ask unless --agent names some. They go on
    asking until it happens, until --withdraw, or until they are started again. Exit code 1 where it did not happen.
    """
    files = agent_files(find_run(Site.here().root, name))
    found = asyncio.run(request(files, event, chosen, wait_s=wait_s, withdraw=withdraw))
    click.echo(json.dumps(asdict(found), sort_keys=True) if as_json else _told(found, wait_s, withdraw))
    if not found.happened and not withdraw:
        raise SystemExit(1)


async def request(
    files: Sequence[AgentFile], event: str, chosen: Sequence[str] = (), *, wait_s: float, withdraw: bool = False
) -> Answer:
    """Let the `chosen` of these agents (all, if none is) ask for `event`, or ask no more; wait until it begins.

    `wait_s` seconds at most. `ConfigError` where the service has no such interrupt, or no agent has such a name;
    `NoAgent` where none of the chosen answers.
    """
    before, silent = await _all(named(files, chosen), "withdraw" if withdraw else "ask", event)
    if not before:
        raise NoAgent(f"none of {', '.join(silent)} answers", fix="./quorate status shows which agents run.")
    end, now = time.monotonic() + wait_s, before
    while not withdraw:
        answers, silent = await _all(files, "asked", event)
        now = answers or now
        if any(map(_has_begun, before.values(), map(now.get, before))) or time.monotonic() >= end:
            break
        await asyncio.sleep(_POLL_S)
    latest = max(now.values(), key=lambda one: one["sequence"])
    names = {file.me: file.name for file in files}
    asking = {name for name, one in now.items() if one["is_wanted"]} | {names[who] for who in latest["standing"]}
    return Answer(
        event=event,
        happened=not withdraw and any(map(_has_begun, before.values(), map(now.get, before))),
        asking=tuple(sorted(asking)),
        needed=latest["quorum"],
        members=len(latest["members"]),
        sequence=latest["sequence"],
        round=latest["round"],
        silent=silent,
    )


def _has_begun(before: Mapping[str, Any], now: Mapping[str, Any] | None) -> bool:
    """By the word of one agent."""
    return now is not None and (now["is_going_on"] or now["taken"] > before["taken"])


async def _all(files: Sequence[AgentFile], verb: str, event: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The agents' answers, and why there are none, by name."""
    answers = await asyncio.gather(*(_one(file, verb, event) for file in files))
    said = {file.name: one for file, one in zip(files, answers, strict=True)}
    return (
        {name: one for name, one in said.items() if isinstance(one, dict)},
        {name: one.message for name, one in said.items() if isinstance(one, NoAgent)},
    )


async def _one(file: AgentFile, verb: str, event: str) -> dict[str, Any] | NoAgent:
    try:
        return await tell(file.control, do=verb, event=event)
    except NoAgent as error:  # the others may be enough
        return error


def _told(found: Answer, wait_s: float, withdraw: bool) -> str:
    lines = [f"{name} gives no answer: {why}" for name, why in sorted(found.silent.items())]
    n, who = len(found.asking), ", ".join(found.asking) or "nobody"
    where = f"round {found.sequence} ({plain_round(found.round)})"
    if withdraw:
        return "\n".join([*lines, f"{found.event} is withdrawn; {who} still {'ask' if n > 1 else 'asks'} for it."])
    if found.happened:
        return "\n".join([*lines, f"{found.event} has happened; the service is in {where}."])
    return "\n".join([
        *lines,
        f"{found.event} has not happened in {wait_s:g} s: {found.needed} of {found.members} agents have to ask for it, "
        f"{n} do ({who}). The service is in {where}.",
        "They go on asking until it happens; --withdraw ends that.",
    ])  # fmt: skip
