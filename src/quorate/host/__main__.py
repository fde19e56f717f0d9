"""`python -m quorate.host AGENT_HOME`: run one agent. Its passphrase comes from the environment."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from quorate.abci import UpgradeDue
from quorate.chain.wallet import PASSPHRASE, read_passphrase
from quorate.errors import QuorateError

from . import logs
from .agent import HostedAgent
from .agent_file import AgentFile


def main(arguments: list[str]) -> int:
    """Run until told to stop; 0 then, 1 after a failure, 2 for a wrong call, 3 where another version has to go on."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m quorate.host AGENT_HOME\n")
        return 2
    try:
        passphrase = read_passphrase(os.environ)
        os.environ.pop(PASSPHRASE, None)  # the node that is started from here has no business with it
        file = AgentFile.load(Path(arguments[0]))
        log = logs.start(logging.StreamHandler(), agent=file.name, service=file.service, chain=file.chain_id)
        agent = HostedAgent(file, Path.cwd(), passphrase)
        log.committed = agent.committed
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        agent.run()
    except QuorateError as error:
        sys.stderr.write(f"error: {error}\n" + (f"{error.fix}\n" if error.fix else ""))
        return error.exit_code if isinstance(error, UpgradeDue) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
