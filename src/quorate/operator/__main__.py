"""`python -m quorate.operator CONFIG.json`: run one operator. Its passphrase comes from the environment."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from quorate.chain import read_passphrase
from quorate.chain.wallet import PASSPHRASE
from quorate.errors import QuorateError
from quorate.events import EventWriter
from quorate.operator.config import OperatorConfig
from quorate.operator.run import serve


def main(arguments: list[str]) -> int:
    """Serve until TERM or INT; 0 then, 1 after a failure, 2 for a wrong call."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m quorate.operator CONFIG.json\n")
        return 2
    try:
        passphrase = read_passphrase(os.environ)
        os.environ.pop(PASSPHRASE, None)  # the model servers have no business with it
        config = OperatorConfig.load(Path(arguments[0]))
    except QuorateError as error:
        return _tell(error)
    events = EventWriter(config.events, config.name)
    try:
        asyncio.run(_until_signal(config, passphrase, events))
    except QuorateError as error:
        events.emit("error", message=error.message, fix=error.fix)
        return _tell(error)
    events.emit("stopped")
    return 0


async def _until_signal(config: OperatorConfig, passphrase: str, events: EventWriter) -> None:
    serving = asyncio.ensure_future(serve(config, passphrase, events))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()


def _tell(error: QuorateError) -> int:
    sys.stderr.write(f"error: {error.message}\n" + (f"{error.fix}\n" if error.fix else ""))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
