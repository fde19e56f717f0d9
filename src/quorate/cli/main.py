"""The group of commands. A command's module is imported when the command is called, so that `--help` and the rest
start fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from quorate import __version__
from quorate.errors import SetupError

__all__ = ["COMMANDS", "main"]

# What each command does, in the order in which a newcomer meets them. `quorate.cli.NAME` has the command under its
# name.
COMMANDS: Mapping[str, str] = {
    "demo": "Watch four agents judge a proposal and cast a real vote.",
    "run": "Run a service's agents on this machine.",
    "status": "Show where a running service is.",
    "why": "Say why a running service does not move.",
    "ask": "Ask a running service for an interrupt.",
    "members": "Show or change the members of a running service.",
    "upgrade": "Change the code of a running service.",
    "logs": "Show what the agents of a run have told.",
    "new": "Make a service that runs and has a passing test.",
    "gateway": "Serve OpenAI's API in front of staked operators.",
    "doctor": "What is there, what is missing, what to do about each.",
    "setup": "Set up now what commands otherwise set up when needed.",
    "test": "Run the tests; sets up what the selected ones need.",
    "check": "Lint, types, import arrows, generated files.",
    "simulate": "Run a service under faults that a seed draws; count what is caught.",
    "spec": "Write or check a service's FSM specification.",
    "replay": "Replay recorded blocks of a real network.",
    "graph": "Draw a service's rounds (Mermaid, SVG).",
    "bench": "Measure, and print figures.",
    "lock": "Make the hash locks of all packages anew.",
}


class _Commands(click.Group):
    """Lists commands without importing them; says what is wrong when a command's module is not there."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        wanted = f"quorate.cli.{name}"
        try:
            module = importlib.import_module(wanted)
        except ModuleNotFoundError as error:
            if error.name != wanted:
                raise
            raise SetupError(
                f"The command {name} is not in this checkout ({wanted} is missing).",
                fix="Update the checkout: git pull",
            ) from error
        command = getattr(module, name)
        assert isinstance(command, click.Command), f"{wanted}.{name} is not a click command"  # noqa: S101  (our own module)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quorate")
def main() -> None:
    """Autonomous agent services that act only when a quorum of agents agrees.

    \b
    New here? Run
      ./quorate demo       four agents judge a DAO proposal with staked model
                           operators and cast one vote through their Safe
      ./quorate doctor     what this machine has and lacks

    The first start sets up what is missing in ~/.cache/quorate, once, and says what it costs; Ctrl-C is safe at any
    time. --offline (anywhere) allows no network. QUORATE_DEBUG=1 shows where an error came from.
    """
