"""What the tests of operators as processes share: a chain with a registry, and `python -m quorate.operator` on it."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dao.deploy import Dao, deploy, load_settings
from quorate.chain import OperatorRegistry, Token, Wallet
from quorate.events import Event, Mark, occurred
from quorate.localnet.processes import Child, Supervisor
from quorate.units import Address, Wei
from tests.integration.evm_chain import ROOT, LocalChain, local_chain, rich_wallet

ONE = 10**18
DEPLOYER, OPERATOR = rich_wallet(5), rich_wallet(1)
PASSPHRASE = "only for tests"


@dataclass
class Ground:
    """A chain with this DAO on it, where OPERATOR has tokens; `config` is an operator's file without its models."""

    local: LocalChain
    dao: Dao
    supervisor: Supervisor
    folder: Path
    started: int = field(default=0)

    @property
    def registry(self) -> OperatorRegistry:
        return OperatorRegistry(self.local.chain, self.dao.registry)

    @property
    def token(self) -> Token:
        return Token(self.local.chain, self.dao.token)

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    def config(self, models: list[dict[str, Any]], **changes: Any) -> Path:
        said = {
            "name": "operator-1",
            "keystore": str(self.keystore(OPERATOR)),
            "evm": {"url": self.local.node.url, "chain_id": self.local.chain.chain_id, "registry": self.dao.registry},
            "models": models,
            "events": str(self.events),
            "logs": str(self.folder / "logs"),
        }
        file = self.folder / "operator.json"
        file.write_text(json.dumps(said | changes))
        return file

    def keystore(self, wallet: Wallet) -> Path:
        file = self.folder / f"{wallet.address}.json"
        if not file.exists():
            wallet.save_keystore(file, PASSPHRASE, scrypt_n=2)
        return file

    async def operator(self, config: Path, passphrase: str = PASSPHRASE) -> Child:
        self.started += 1
        return await self.supervisor.spawn(
            f"operator-{self.started}",
            [sys.executable, "-m", "quorate.operator", config],
            env={
                "QUORATE_PASSPHRASE": passphrase,
                "PYTHONPATH": str(ROOT / "src"),
                "TMPDIR": str(self.folder),  # a killed operator leaves its sockets: here, they go with the test
            },
            cwd=self.folder,
            may_end=True,
        )

    async def ready(self, config: Path) -> tuple[Child, Event]:
        """A started operator that is ready, and that event."""
        before = Mark.end_of(self.events)
        child = await self.operator(config)
        return child, await occurred(self.events, "ready", since=before)


@asynccontextmanager
async def ground(folder: Path, *, tokens: int = 5000) -> AsyncIterator[Ground]:
    async with local_chain(folder / "evm") as local, Supervisor(folder / "operators") as supervisor:
        settings = load_settings(ROOT / "dao/settings.yaml")
        allocations: dict[Address, Wei] = {OPERATOR.address: Wei(tokens * ONE)} if tokens else {}
        dao = await deploy(local.chain, DEPLOYER, allocations, Wei(0), settings)
        yield Ground(local, dao, supervisor, folder)
