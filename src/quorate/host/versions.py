"""Which of the versions of a service that its operator has installed an agent goes on with."""

from __future__ import annotations

from pathlib import Path

from quorate.abci import Store
from quorate.abci.machine import Replica
from quorate.errors import ConfigError
from quorate.fsm import Service
from quorate.loader import load_service

from .agent_file import AgentFile

__all__ = ["installed"]


def installed(file: AgentFile, root: Path) -> tuple[Service, Path]:
    """The version whose turn it is by the agent's stored state, and its folder: `service`, or else `next`.

    Raises what `service` says where neither is: `UpgradeDue` where the members agreed on a third, `ConfigError`
    where the state is damaged or of another version.
    """
    store = Store(file.home / "state.db", file.chain_id)
    saved = store.load()
    store.close()
    refusal: ConfigError | None = None
    for place in (file.service, file.next):
        if place:
            service = load_service(root / place)
            try:
                if saved is not None:
                    replica = Replica.decode(service, saved)
                    replica.refuse_next(replica.height + 1)
            except ConfigError as error:
                refusal = refusal or error
            else:
                return service, root / place
    assert refusal is not None, "an agent file names a service"  # noqa: S101
    raise refusal
