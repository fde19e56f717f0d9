"""`python -m quorate.cli`: run a command, and turn what it raises into a sentence and an exit code.

0 done; 1 an error of ours (`error:` and what to do, on stderr); 2 a wrong option; 130 Ctrl-C; 143 SIGTERM.
QUORATE_DEBUG=1 adds the traceback.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from quorate.errors import QuorateError, SetupError
from quorate.localnet.tools.boot import show
from quorate.localnet.tools.make import OFFLINE, Interrupted

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Run `./quorate ARGUMENTS`; return its exit code."""
    try:
        import click

        from quorate.cli.main import main
    except ImportError as error:
        if (error.name or "").startswith("quorate"):
            raise
        show(_damaged(error))
        return 1
    try:
        code = main.main(_without_offline(arguments), prog_name="./quorate", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except QuorateError as error:
        show(error)
        return 1
    except Interrupted:
        return 143
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:  # the reader of our output has gone (`| head`); nothing is left to say, not even at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _without_offline(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--offline`, which may stand anywhere before `--` and becomes QUORATE_OFFLINE=1 for us
    and all children.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--offline"]
    if len(kept) < end:
        os.environ[OFFLINE] = "1"
    return [*kept, *arguments[end:]]


def _damaged(error: ImportError) -> SetupError:
    return SetupError(
        f"The Python environment in {sys.prefix} is damaged: {error}.",
        fix=f"Remove it and run the same command again: rm -rf {os.path.realpath(sys.prefix)}",
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
