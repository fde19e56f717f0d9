"""A real agent (open-aea, decision maker, runner) as a process: `python -m tests.chain_of_agents.hosted FOLDER`.

It is `quorate.host` itself; only its application, store, archive and validator are the ones that tell and crash.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from quorate.abci import Retention, Validator
from quorate.host.__main__ import main
from quorate.host.packages import build_agent
from tests.chain_of_agents.agent import AgentFile
from tests.chain_of_agents.watched import Bomb, Journal, WatchedApp, WatchedArchive, WatchedStore

__all__ = ["HOME"]

HOME = "host"
"""Where, in the folder of the chain's node, the agent has its own home."""


def _run(folder: Path) -> int:
    file = AgentFile(**json.loads((folder / "agent.json").read_text()))
    journal = Journal(file.journal)
    bomb = Bomb(file.crash_in, file.crash_at, folder / "crashed")

    def store(path: Path, chain_id: str) -> WatchedStore:
        return WatchedStore(path, chain_id, bomb)

    def archive(home: Path) -> WatchedArchive:
        retention = Retention(blocks=file.blocks, snapshot_every=file.snapshot_every, snapshots=file.snapshots)
        return WatchedArchive(home, retention, bomb)

    def app(*parts: Any, **options: Any) -> WatchedApp:
        if file.skew_s:
            options["wall_clock"] = lambda: time.time() + file.skew_s
        return WatchedApp(*parts, journal=journal, bomb=bomb, **options)

    class WatchedValidator(Validator):
        async def start(self) -> None:
            await super().start()
            bomb.node = lambda: self.node.pid
            journal.write("started", node=self.node.pid)

    def agent(*, package: Path, **options: Any) -> Any:  # a test's service has no package of its own
        return build_agent(package=package.with_name("hello_world"), **options)

    with patch.multiple(
        "quorate.host.agent",
        Store=store,
        Archive=archive,
        ServiceApp=app,
        Validator=WatchedValidator,
        build_agent=agent,
    ):
        return main([str(folder / HOME)])


if __name__ == "__main__":
    sys.exit(_run(Path(sys.argv[1])))
