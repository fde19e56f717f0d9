"""What one agent's `act` can reach: its own address, its configuration, the chain, the models, the Safe; no key."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from quorate.chain import Chain
from quorate.durable import replace_file
from quorate.errors import ConfigError
from quorate.fsm import Period
from quorate.members import Change
from quorate.model import ModelClient
from quorate.units import Address, Call

from .agreed import Agreed
from .approvals import Approvals
from .journal import Journal
from .settler import SafeSettler
from .vault import FileVault

__all__ = ["ActContext", "Equipment", "keep_evidence"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What an agent has for its whole life; each round's context is made from it."""

    me: Address
    chain_id: str
    config: Any
    log: logging.Logger
    journal: Journal
    evidence: Path
    chain: Chain | None = None
    model: ModelClient | None = None
    settler: SafeSettler | None = None
    agreed: Agreed = field(default_factory=Agreed)
    approvals: Approvals | None = None


class ActContext:
    """The `Context` of one round (`quorate.fsm.Context`), and what skills ask for beyond it."""

    def __init__(self, equipment: Equipment, period: Period) -> None:
        self._equipment = equipment
        self._period = period
        self.me = equipment.me
        self.config = equipment.config
        self.log = equipment.log

    async def beacon(self) -> int:
        """`Period.beacon`: the same number on every agent."""
        return self._period.beacon(self._equipment.chain_id)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    @property
    def chain(self) -> Chain:
        """The EVM chain; `ConfigError` where this agent was given none."""
        return _given(self._equipment.chain, "an EVM chain")

    @property
    def model(self) -> ModelClient:
        """The staked operators' models; `ConfigError` where this agent was given no registry."""
        return _given(self._equipment.model, "an operator registry")

    @property
    def settler(self) -> SafeSettler:
        """The way to the Safe; `ConfigError` where this agent was given none."""
        return _given(self._equipment.settler, "a Safe")

    @property
    def approved(self) -> Change | None:
        """The change of members that this agent's operator approves."""
        approvals = self._equipment.approvals
        return None if approvals is None else approvals.change

    async def owner_calls(self, change: Change, threshold: int) -> tuple[Call, ...]:
        """What the Safe has to call of itself for an agreed change of members."""
        return await self.settler.owner_calls(change, threshold)

    @property
    def vault(self) -> FileVault:
        """Where this agent keeps what it will reveal (`quorate.rounds.sealed`): beside its evidence, never in it."""
        evidence = self._equipment.evidence
        folder, agreed = evidence.with_name(f"{evidence.name}-vault"), self._equipment.agreed

        def committed() -> int:
            return agreed.period.state.period if agreed.period else 0

        return FileVault(folder, self._period.state.period, committed)

    def emit(self, kind: str, **fields: Any) -> None:
        """Tell whoever watches this agent what happened."""
        self._equipment.journal.emit(kind, **fields)

    def keep(self, name: str, content: bytes) -> None:
        """Keep `content` in this agent's evidence folder; the name is one file name, never a path."""
        keep_evidence(self._equipment.evidence, name, content)


def keep_evidence(folder: Path, name: str, content: bytes) -> None:
    """Write `content` into the evidence folder, whole or not at all; the name is one file name, never a path."""
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"{name!r} is no plain file name")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / name, content, is_synced=False)


def _given(value: T | None, what: str) -> T:
    if value is None:
        raise ConfigError(
            f"this round needs {what}, and the agent was started without one", fix="set `evm` in agent.json"
        )
    return value
