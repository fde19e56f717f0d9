"""Real agents (open-aea, CometBFT) on this machine, for tests: a checkout with a service, a run of it, and waiting."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from quorate.chain.wallet import Wallet
from quorate.cli._template import agent_files
from quorate.host.agent_file import EvmSettings
from quorate.localnet.agents import Agents, agents
from quorate.localnet.diagnosis import Diagnosis, diagnose
from quorate.localnet.processes import Supervisor
from quorate.localnet.run_dir import RunDir
from quorate.localnet.snapshot import Part, look

__all__ = ["HELLO_WORLD", "ROOT", "agents_of", "project", "said", "until_sequence"]

ROOT = Path(__file__).parents[1]
HELLO_WORLD = ROOT / "services/hello_world"
_POLL_S = 0.2


def project(root: Path, name: str, code: str, agents: int = 4) -> Path:
    """The folder of a service `name` with this service.py, in a checkout of its own at `root`."""
    (root / "src").symlink_to(ROOT / "src")
    folder, package = root / "services" / name, root / "agents" / name
    files = {"service.py": code, "service.yaml": f"description: A service of a test.\nagents: {agents}\n"}
    for where, texts in ((folder, files), (package, agent_files(name))):
        where.mkdir(parents=True)
        for file, text in texts.items():
            (where / file).write_text(text)
    return folder


@asynccontextmanager
async def agents_of(
    service: Path,
    run: RunDir,
    wallets: Sequence[Wallet] | int = 4,
    *,
    config: Mapping[str, Any] | None = None,
    evm: EvmSettings | None = None,
) -> AsyncIterator[tuple[Agents, Supervisor]]:
    """Agents of the service in this folder of a checkout, with these wallets or with so many new ones."""
    owned = [Wallet.create() for _ in range(wallets)] if isinstance(wallets, int) else wallets
    cometbft = Path(os.environ["QUORATE_COMETBFT"])
    async with (
        Supervisor(run.logs) as supervisor,
        agents(
            supervisor,
            run,
            root=service.parents[1],
            service=service,
            wallets=owned,
            cometbft=cometbft,
            config=config,
            evm=evm,
        ) as quorum,
    ):
        yield quorum, supervisor


async def until_sequence(run: RunDir, sequence: int, within_s: float = 120) -> Part:
    """Wait until the service is in this round since genesis, or in a later one."""
    async with asyncio.timeout(within_s):
        while not (part := (await look(run)).part) or part.sequence < sequence:
            await asyncio.sleep(_POLL_S)
        return part


async def said(run: RunDir, enough: Callable[[Diagnosis], bool]) -> Diagnosis:
    """The first diagnosis that is `enough`; asked again, for processes take a moment to stop and to start."""
    async with asyncio.timeout(60):
        while not enough(found := diagnose(await look(run))):
            await asyncio.sleep(_POLL_S)
        return found
