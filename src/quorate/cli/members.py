"""`./quorate members`: who the agents of a running service are; let one join, leave, or take another's place."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from quorate.cli._options import json_option, run_option
from quorate.errors import ConfigError
from quorate.host.agent_file import AgentFile
from quorate.host.control import NoAgent, tell
from quorate.localnet import processes
from quorate.localnet.anvil import share_of
from quorate.localnet.joiner import joiner
from quorate.localnet.processes import Supervisor
from quorate.localnet.run_dir import RunDir, find_run
from quorate.localnet.snapshot import agent_files
from quorate.localnet.tools import Site
from quorate.members import Change, Member
from quorate.units import Address

__all__ = ["Roster", "make", "members", "roster"]

_POLL_S = 0.2
_CATCH_UP_S = 300.0
_WAIT = click.option("--wait", "wait_s", default=120.0, show_default=True, help="Seconds to wait for the change.")


@dataclass(frozen=True)
class Roster:
    """The members of a running service, by the word of the agent that is furthest."""

    members: tuple[Member, ...]
    quorum: int
    height: int
    can_change: bool
    """The service's state is a Membership."""
    names: dict[Address, str]
    """Of the agents on this machine."""
    approved: dict[str, str]
    """What each agent's operator approves, by the agent's name; agents that approve nothing are left out."""
    following: tuple[str, ...]
    """Agents that run here and are no members: they wait to be let in, or have just left."""
    silent: tuple[str, ...]
    """Agents that give no answer."""


@click.group(invoke_without_command=True)
@run_option
@json_option
@click.pass_context
def members(context: click.Context, name: str | None, as_json: bool) -> None:
    """Show who the agents of a running service are, or change it while it runs.

    Each agent's operator decides for that agent; a change is made once a quorum approves it. On one machine all agents
    have the same operator, so these commands approve for every agent that runs here.
    """
    if context.invoked_subcommand is not None:
        return
    found = asyncio.run(roster(agent_files(find_run(Site.here().root, name))))
    click.echo(json.dumps(asdict(found), sort_keys=True) if as_json else _table(found))


@members.command()
@run_option
@_WAIT
def join(name: str | None, wait_s: float) -> None:
    """Start one more agent here, and let the others take it in.

    It follows the chain first, so that it knows all when it counts. It runs until Ctrl-C, or until it has left.
    """
    _run_joiner(name, None, wait_s)


@members.command()
@click.argument("agent")
@run_option
@_WAIT
def replace(agent: str, name: str | None, wait_s: float) -> None:
    """Start one more agent here in AGENT's place.

    AGENT (agent-2, or an address) leaves in the same block in which the new one joins. It runs until Ctrl-C.
    """
    _run_joiner(name, agent, wait_s)


@members.command()
@click.argument("agent")
@run_option
@_WAIT
def leave(agent: str, name: str | None, wait_s: float) -> None:
    """Let AGENT (agent-2, or an address) leave: it does its part until the others go on without it, and ends."""
    files = agent_files(find_run(Site.here().root, name))
    asyncio.run(_leave(files, agent, wait_s))


async def roster(files: Sequence[AgentFile]) -> Roster:
    """What the agents of these files say; `NoAgent` where none answers."""
    said = await asyncio.gather(*(_tell(file, do="members") for file in files))
    answers = {file.name: one for file, one in zip(files, said, strict=True) if one is not None}
    if not answers:
        raise NoAgent("no agent of this run answers", fix="./quorate status shows which agents run.")
    best = max(answers.values(), key=lambda one: int(one["height"]))
    return Roster(
        members=tuple(Member(**one) for one in best["members"]),
        quorum=int(best["quorum"]),
        height=int(best["height"]),
        can_change=bool(best["can_change"]),
        names={file.me: file.name for file in files},
        approved={name: str(one["approved"]) for name, one in answers.items() if one["approved"]},
        following=tuple(name for name, one in answers.items() if not one["is_member"]),
        silent=tuple(file.name for file in files if file.name not in answers),
    )


async def make(files: Sequence[AgentFile], change: Change, wait_s: float) -> Roster:
    """Approve `change` at all these agents that are members, and wait until it is made.

    `ConfigError` with an agent's own words where it refuses, or where it was not made in time: then nobody approves it
    any more.
    """
    before = await roster(files)
    here = [file for file in files if file.me in {one.address for one in before.members}]
    answers = await asyncio.gather(*(_tell(file, do="approve", change=asdict(change)) for file in here))
    approving = sum(answer is not None for answer in answers)
    end = time.monotonic() + wait_s
    while True:
        now = await roster(files)
        if now.members == change.made(before.members):
            return now
        if time.monotonic() >= end:
            await asyncio.gather(*(_tell(file, do="disapprove") for file in here))
            raise ConfigError(
                f"{change} was not agreed within {wait_s:g} s: {approving} agents approved it, {now.quorum} are needed",
                fix="./quorate why says what the service waits for.",
            )
        await asyncio.sleep(_POLL_S)


async def _tell(file: AgentFile, **request: Any) -> dict[str, Any] | None:
    try:
        return await tell(file.control, **request)
    except NoAgent:  # the others may be enough
        return None


async def _leave(files: Sequence[AgentFile], agent: str, wait_s: float) -> None:
    before = await roster(files)
    _require_changeable(before)
    address = _address(before, agent)
    change = Change(leave=address)
    click.echo(f"{_name(before, address)} is to leave; the agents here approve it ...")
    after = await make(files, change, wait_s)
    click.echo(f"{_name(before, address)} has left: {len(after.members)} members, {after.quorum} are a quorum.")


def _run_joiner(name: str | None, agent: str | None, wait_s: float) -> None:
    root = Site.here().root
    processes.run(_join(find_run(root, name), root, agent, wait_s))


async def _join(run: RunDir, root: Path, agent: str | None, wait_s: float) -> None:
    files = agent_files(run)
    before = await roster(files)
    _require_changeable(before)
    leaves = None if agent is None else _address(before, agent)
    async with Supervisor(run.logs) as supervisor, joiner(supervisor, run, root, files, before.members) as new:
        click.echo(f"{new.file.name} ({new.file.me}) runs and follows the chain ...")
        await asyncio.gather(*(_tell(file, do="welcome", node=new.member.node_id) for file in files))
        if new.file.evm is not None and not await share_of(new.file.evm.url, new.file.me, [one.me for one in files]):
            click.echo(f"{new.file.me} has no gas money on {new.file.evm.url}: send it some, or it cannot be keeper.")
        await _until_level(files, new.file)
        click.echo(f"{new.file.name} knows all; the agents here approve that it joins ...")
        after = await make([*files, new.file], Change(new.member, leaves), wait_s)
        gone = "" if leaves is None else f" in the place of {_name(before, leaves)}"
        click.echo(f"{new.file.name} has joined{gone}: {len(after.members)} members, {after.quorum} are a quorum.")
        click.echo(f"It runs here; Ctrl-C ends it. Its log is {new.child.log}.")
        await new.child.wait()
        click.echo(f"{new.file.name} has ended: {' '.join(new.child.last_lines(1))}")


async def _until_level(files: Sequence[AgentFile], new: AgentFile) -> None:
    """Wait until the new agent has the blocks that the others had a moment ago."""
    end = time.monotonic() + _CATCH_UP_S
    while True:
        goal = (await roster(files)).height
        await asyncio.sleep(_POLL_S)
        said = await _tell(new, do="members")
        if said is not None and int(said["height"]) >= goal > 0:
            return
        if time.monotonic() >= end:
            raise ConfigError(
                f"{new.name} is at block {said and said['height']}, the others at {goal}: it has not caught up within "
                f"{_CATCH_UP_S:.0f} s",
                fix=f"Its node's log says why: {new.comet_home / 'node.log'}",
            )


def _require_changeable(found: Roster) -> None:
    if not found.can_change:
        raise ConfigError(
            "the members of this service cannot change: its state is no Membership",
            fix="docs/membership.md shows the three lines that its service.py needs.",
        )


def _address(found: Roster, agent: str) -> Address:
    """The member that is called so."""
    known = {one.address: _name(found, one.address) for one in found.members}
    for address, its in known.items():
        if agent.lower() in (address.lower(), its):
            return address
    raise ConfigError(f"no member is called {agent}", fix=f"There are {', '.join(known.values())}.")


def _name(found: Roster, address: Address) -> str:
    return found.names.get(address, address)


def _table(found: Roster) -> str:
    lines = [f"{len(found.members)} members, {found.quorum} are a quorum; block {found.height}"]
    for one in sorted(found.members, key=lambda one: _name(found, one.address)):
        name = _name(found, one.address)
        lines.append(f"  {name:<10} {one.address}  validator {one.validator_key[:12]}…, node {one.node_id[:8]}…")
    lines += [f"  {name} runs and is no member" for name in found.following]
    lines += [f"  {name} gives no answer" for name in found.silent]
    lines += [f"  {name} approves: {change}" for name, change in sorted(found.approved.items())]
    if not found.can_change:
        lines.append("  They are those of the genesis for good: the service's state is no Membership.")
    return "\n".join(lines)
