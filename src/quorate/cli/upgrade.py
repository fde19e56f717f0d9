"""`./quorate upgrade`: the agents of a running service change to another version of its code, and keep its state."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from quorate.abci import Target
from quorate.abci.machine import rehearse
from quorate.cli._options import agents_option, json_option, run_option
from quorate.errors import ConfigError
from quorate.fsm import Service
from quorate.host.agent_file import AgentFile
from quorate.host.control import NoAgent, tell
from quorate.loader import load_service, load_settings
from quorate.localnet.recorder import stored_state
from quorate.localnet.run_dir import find_run
from quorate.localnet.snapshot import agent_files, named
from quorate.localnet.tools import Site

__all__ = ["Outcome", "change", "upgrade"]

_POLL_S = 0.3


@dataclass(frozen=True)
class Outcome:
    """How the change went."""

    version: int
    spec_hash: str
    due: int
    """The first block of that version; 0 where no quorum has asked for it yet."""
    running: tuple[str, ...]
    """The agents, by name, that run it."""
    waiting: tuple[str, ...]
    """The others."""
    asking: int
    needed: int


@click.command()
@click.argument("service", required=False, type=click.Path(path_type=Path), metavar="[SERVICE]")
@run_option
@agents_option
@click.option("--at", "height", default=0, help="First block of the new version, at the earliest; else the next one.")
@click.option("--wait", "wait_s", default=60.0, show_default=True, help="Seconds to wait until all agents run it.")
@json_option
def upgrade(
    service: Path | None, name: str | None, chosen: tuple[str, ...], height: int, wait_s: float, as_json: bool
) -> None:
    """Change the code of a running service.

    SERVICE is the folder of the new version; without it, the folder that the agents were started from, whose files you
    have edited. The new service.py says version=N (one more than before) and how it takes the old state over:
    migrations={"<spec hash of the old version>": function}. See docs/upgrade.md.

    First the migration is tried on the present state, and nothing happens where it fails. Then the agents ask for the
    version; as soon as a quorum does, the old code stops at the same block everywhere, and the agents are started with
    the new one. Exit code 1 where that has not happened in time.
    """
    root = Site.here().root
    files = agent_files(find_run(root, name))
    found = asyncio.run(change(files, root, service, chosen, height=height, wait_s=wait_s))
    click.echo(json.dumps(asdict(found), sort_keys=True) if as_json else _told(found))
    if found.waiting:
        raise SystemExit(1)


async def change(
    files: Sequence[AgentFile],
    root: Path,
    folder: Path | None,
    chosen: Sequence[str] = (),
    *,
    height: int = 0,
    wait_s: float,
) -> Outcome:
    """Let the `chosen` of these agents (all, if none is) ask for the version in `folder`; wait until all run it.

    `ConfigError` where that version cannot take their state over; `NoAgent` where none of the chosen answers.
    """
    place = _place(root, folder) if folder else files[0].service
    service = load_service(root / place)
    running = load_service(root / files[0].service).name
    if service.name != running:
        raise ConfigError(
            f"{place} is the service {service.name}; these agents run {running}",
            fix=f"Name the folder of another version of {running}.",
        )
    target = Target.of(service, load_settings(service, root / place, files[0].config).config_hash())
    rehearse(service, stored_state(files[0].home / "state.db"))
    asking = named(files, chosen)
    for file in files:  # each reads it at its next start, and goes on with the version whose turn it is
        if place not in (file.service, file.next):
            dataclasses.replace(file, next=place).save()
    end = time.monotonic() + wait_s
    while True:
        answers = await asyncio.gather(*(_ask(file, target, height, ask=file in asking) for file in files))
        found = _outcome(files, service, answers)
        if not found.waiting or time.monotonic() >= end:
            if not any(answers) and not found.running:
                raise NoAgent("none of the agents answers", fix="./quorate status shows which agents run.")
            return found
        await asyncio.sleep(_POLL_S)


async def _ask(file: AgentFile, target: Target, height: int, *, ask: bool) -> Mapping[str, Any] | None:
    """How it stands with an agent; it asks where it runs another version and has not asked. None: no answer now."""
    try:
        now = await tell(file.control, do="version")
        is_done = now["spec_hash"] == target.spec_hash or now["due"]
        if ask and not is_done and now["asking"].get(file.me) != [target.version, target.spec_hash]:
            now = await tell(file.control, do="upgrade", height=height, **asdict(target))
    except NoAgent:  # it is being started again, or is down
        return None
    return now


def _outcome(files: Sequence[AgentFile], service: Service, answers: Sequence[Mapping[str, Any] | None]) -> Outcome:
    said = {file.name: answer for file, answer in zip(files, answers, strict=True)}
    running = [name for name, one in said.items() if one and one["spec_hash"] == service.spec_hash]
    latest = max((one for one in answers if one), key=lambda one: one["height"], default={})
    wanted = [service.version, service.spec_hash]
    is_new = latest.get("spec_hash") == service.spec_hash
    return Outcome(
        version=service.version,
        spec_hash=service.spec_hash,
        due=latest.get("began", 0) if is_new else latest.get("due", 0),
        running=tuple(running),
        waiting=tuple(name for name in said if name not in running),
        asking=sum(plan == wanted for plan in latest.get("asking", {}).values()),
        needed=latest.get("quorum", 0),
    )


def _place(root: Path, folder: Path) -> str:
    """The folder as agents name it: from the project's root."""
    whole = folder.resolve()
    if not whole.is_relative_to(root.resolve()):
        raise ConfigError(f"{whole} is not below {root}", fix="Put the new version into a folder of this project.")
    return str(whole.relative_to(root.resolve()))


def _told(found: Outcome) -> str:
    what = f"version {found.version} ({found.spec_hash[:12]})"
    if not found.waiting:
        return f"all {len(found.running)} agents run {what}, from block {found.due} on"
    if not found.due:
        return (
            f"{found.asking} agents ask for {what}; {found.needed} are needed. They go on asking; where one refused, "
            "./quorate logs says why"
        )
    return f"{what} begins with block {found.due}; {', '.join(found.waiting)} does not run it yet: ./quorate why"
