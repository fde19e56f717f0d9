"""What `./quorate` runs when the core environment is not ready: makes it, then becomes it.

Runs under whatever Python the system has (3.11 or newer) with nothing installed: standard library only. `doctor` is
answered here, without making anything, because a doctor that must first install something cannot say what is
missing.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence

from quorate.errors import QuorateError, SetupError
from quorate.localnet.tools.make import OFFLINE, Interrupted, is_offline, missing, toolbox
from quorate.localnet.tools.parts import Site, Tool
from quorate.localnet.tools.progress import Screen

__all__ = ["main", "show"]


def main(arguments: Sequence[str]) -> int:
    """Make the core environment and replace this process by its `python -m quorate.cli ARGUMENTS`; an exit code if
    that fails.
    """
    if "--offline" in _before_dashes(arguments):
        os.environ[OFFLINE] = "1"
    try:
        _require_platform()
        site = Site.here()
        if arguments[:1] == ["doctor"] and missing([Tool.PYTHON], site=site):
            from quorate.localnet.tools import doctor

            return doctor.main([argument for argument in arguments[1:] if argument != "--offline"])
        python = toolbox({Tool.PYTHON}, is_offline(os.environ), Screen(), site=site).python
        os.execv(python, [str(python), "-P", "-m", "quorate.cli", *arguments])  # noqa: S606  (as a shell's exec)
    except QuorateError as error:
        show(error)
        return 1
    except Interrupted:
        return 143
    except KeyboardInterrupt:
        return 130


def show(error: QuorateError) -> None:
    """Print what went wrong and what to do, on stderr; with QUORATE_DEBUG=1 also where."""
    if os.environ.get("QUORATE_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    sys.stderr.write(f"error: {error}\n" + (f"       {error.fix}\n" if error.fix else ""))


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments up to `--`, which ends our options."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _require_platform() -> None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise SetupError(
            f"Quorate runs on Linux with x86_64 or aarch64; this is {platform.system()} on {platform.machine()}.",
            fix="Use a Linux container or virtual machine.",
        )
    if sys.version_info >= (3, 14):
        raise SetupError(
            f"Python {platform.python_version()} is newer than the locked packages know (3.11, 3.12 and 3.13).",
            fix="Install python3.13, or set QUORATE_PYTHON to one of the three.",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
