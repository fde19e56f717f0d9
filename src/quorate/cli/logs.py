"""`./quorate logs`: what the processes of a run have said, in the order of time."""

from __future__ import annotations

import time

import click

from quorate.errors import ConfigError
from quorate.localnet.logbook import LEVELS, Logbook, Record, sources_of
from quorate.localnet.run_dir import find_run
from quorate.localnet.tools import Site

__all__ = ["logs"]

_POLL_S = 0.2
_WHO_WIDTH = 12


@click.command()
@click.argument("who", nargs=-1)
@click.option(
    "--run", "name", help="Which run, by the beginning or end of its name; else the newest, also one that is over."
)
@click.option("-n", "count", type=click.IntRange(0), default=50, show_default=True, help="How many records; 0: all.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over, or Ctrl-C.")
@click.option("--level", type=click.Choice(LEVELS), default="info", show_default=True, help="Nothing below this.")
@click.option("--node", is_flag=True, help="Also what the CometBFT nodes say.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def logs(
    who: tuple[str, ...], name: str | None, count: int, follow: bool, level: str, node: bool, as_json: bool
) -> None:
    """Show what the agents of a run have told.

    WHO are names such as agent-2, operator-1 or anvil; all agents and operators, if none is named. Shown are their
    logs and events, merged in the order of time.
    """
    run = find_run(Site.here().root, name, alive=False)
    files = sources_of(run.path, who, node=node)
    if not files:
        names = sorted({path.stem for path in run.logs.glob("*.log")})
        raise ConfigError(
            f"{', '.join(who) or 'nobody'} has written nothing in the run {run.name}",
            fix=f"There are logs of {', '.join(names) or 'nobody'}.",
        )
    book, least = Logbook(files), LEVELS.index(level)
    past = [record for record in book.new() if _weight(record) >= least]
    _print(past[-count:] if count else past, as_json=as_json)
    while follow and run.is_alive:
        time.sleep(_POLL_S)
        _print([record for record in book.new() if _weight(record) >= least], as_json=as_json)


def _weight(record: Record) -> int:
    return LEVELS.index(record.level) if record.level in LEVELS else LEVELS.index("info")


def _print(records: list[Record], *, as_json: bool) -> None:
    for record in records:
        if as_json:
            click.echo(record.line())
            continue
        clock = time.strftime("%H:%M:%S", time.localtime(record.t)) + f".{int(record.t % 1 * 1000):03}"
        where = f"{record.fields['round']}: " if "logger" in record.fields and record.fields.get("round") else ""
        sign = "" if record.level == "info" else f"{record.level.upper()} "
        click.echo(f"{clock}  {record.who:<{_WHO_WIDTH}} {sign}{where}{record.text}")
