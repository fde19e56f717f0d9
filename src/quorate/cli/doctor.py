"""`./quorate doctor`: what is there, what is missing, what to do about each."""

from __future__ import annotations

import click

from quorate.localnet.tools import Site
from quorate.localnet.tools.doctor import as_json, examine, exit_code, report

__all__ = ["doctor"]


@click.command()
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
@click.option("--verify", is_flag=True, help="Read every cached file again (a minute with vLLM).")
@click.pass_context
def doctor(context: click.Context, is_json: bool, verify: bool) -> None:
    """What is there, what is missing, what to do about each.

    Changes nothing. Exit code 1 if something keeps Quorate from working on this machine.
    """
    findings = examine(Site.here(), thorough=verify)
    click.echo(as_json(findings) if is_json else report(findings))
    context.exit(exit_code(findings))
