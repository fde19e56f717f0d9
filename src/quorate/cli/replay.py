"""`./quorate replay`: recorded blocks of a real network through today's code."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import click

from quorate.abci import Genesis
from quorate.errors import ConfigError
from quorate.fsm import Service
from quorate.loader import load_service
from quorate.localnet.recorder import record, stored_state
from quorate.localnet.run_dir import find_run
from quorate.localnet.snapshot import agent_files
from quorate.localnet.tools import Site
from quorate.localnet.transcript import Broken, Replayed, Transcript
from quorate.localnet.transcript import replay as run

__all__ = ["replay"]

FOLDER = Path("tests/transcripts")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--record", "target", type=click.Path(path_type=Path), help="Record the running network to this file.")
@click.option("--run", "name", help="With --record: which run; else the newest that runs.")
@click.option("--periods", type=click.IntRange(1), default=1, show_default=True, help="With --record: how many.")
@click.option("--from-now", is_flag=True, help="With --record: begin with the state of now, not with the first block.")
@click.option("--accept", metavar="WHY", help="Write into FILES that their first difference is meant, and why.")
@click.option("--service", "folder", type=click.Path(path_type=Path), help="The service; else services/NAME.")
@click.option(
    "--older", multiple=True, type=click.Path(path_type=Path), help="A version that decided earlier blocks; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a file.")
@click.pass_context
def replay(
    context: click.Context,
    files: tuple[Path, ...],
    target: Path | None,
    name: str | None,
    periods: int,
    from_now: bool,
    accept: str | None,
    folder: Path | None,
    older: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Replay recorded blocks of a real network through today's code.

    FILES are transcripts; all in tests/transcripts, if none is named. A changed app hash is a break: agents of the
    old and of the new code would part there. Exit code 1 for one that the transcript does not name.

    Where the network changed its code on the way (./quorate upgrade), name the folders of the versions before with
    --older.
    """
    root = Site.here().root
    versions = [load_service(one) for one in older]
    if target is not None:
        transcript = asyncio.run(_recorded(root, name, periods, folder, versions, from_now=from_now))
        transcript.save(target)
        files = (target,)
    chosen = files or tuple(sorted((root / FOLDER).glob("*.jsonl")))
    if not chosen:
        raise ConfigError(f"there are no transcripts in {root / FOLDER}", fix="Record one: ./quorate replay --record")
    are_as_meant = [_one(root, path, accept, folder, versions, as_json=as_json) for path in chosen]
    context.exit(0 if all(are_as_meant) else 1)


async def _recorded(
    root: Path, name: str | None, periods: int, folder: Path | None, older: Sequence[Service], *, from_now: bool
) -> Transcript:
    agent = agent_files(find_run(root, name))[0]
    service = load_service(folder or root / agent.service)
    start = stored_state(agent.home / "state.db") if from_now else None
    genesis = Genesis.load(agent.comet_home)
    return await record(agent.socket_dir / "rpc.sock", genesis, service, periods, start, older)


def _one(
    root: Path, path: Path, accept: str | None, folder: Path | None, older: Sequence[Service], *, as_json: bool
) -> bool:
    transcript = Transcript.load(path)
    found = run(transcript, load_service(folder or root / "services" / transcript.service), older)
    if accept is not None:
        broken = None if found.broken is None else Broken(found.broken.height, accept)
        transcript = dataclasses.replace(transcript, broken=broken)
        transcript.save(path)
    is_as_meant = found.is_as_meant(transcript.broken)
    if as_json:
        about = {"file": str(path), "service": transcript.service, "ok": is_as_meant, **dataclasses.asdict(found)}
        click.echo(json.dumps(about, sort_keys=True))
    else:
        click.echo(_told(path, transcript, found, is_as_meant=is_as_meant))
    return is_as_meant


def _told(path: Path, transcript: Transcript, found: Replayed, *, is_as_meant: bool) -> str:
    if found.broken is None:
        same = f"{found.blocks} blocks, {found.rounds} rounds and {found.periods} periods give the same app hashes"
        if transcript.broken is None:
            return f"ok      {path}: {same}"
        return f"FAILED  {path}: {same}, but it should break at block {transcript.broken.height}"
    one = found.broken
    what = f"block {one.height}, in {one.round}: {one.cause}"
    if is_as_meant and transcript.broken is not None:
        return f"broken  {path}: {what}; meant: {transcript.broken.why}"
    return (
        f"BREAK   {path}: {what}\n"
        f"        recorded {one.expected or '–'}\n        today    {one.got or '–'}\n"
        '        If that is meant: ./quorate replay --accept "why" ' + str(path)
    )
