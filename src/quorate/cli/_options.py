"""Options that several commands share; each is a decorator."""

from __future__ import annotations

import click

__all__ = ["agents_option", "json_option", "run_option"]

run_option = click.option(
    "--run", "name", help="Which run, by the beginning or end of its name; else the newest that runs."
)
agents_option = click.option(
    "--agent", "chosen", multiple=True, metavar="NAME", help="Ask through this agent only; may be repeated."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
