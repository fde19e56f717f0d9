"""The agents of one service on this machine: their homes, their processes (each with its validator), their deaths.

async with Supervisor(run.logs) as supervisor, agents(supervisor, run, root=root, service=..., ...) as quorum:
    await quorum.kill("agent-2")
    await quorum.start("agent-2")
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.abci import UpgradeDue, make_testnet
from quorate.chain import Wallet
from quorate.errors import ConfigError
from quorate.fsm import Service
from quorate.host.agent_file import AgentFile, EvmSettings
from quorate.loader import load_service, load_settings
from quorate.localnet.crew import Command, Crew
from quorate.localnet.keys import PASSPHRASE, new_passphrase, save_keystore
from quorate.localnet.ports import held_ports
from quorate.localnet.processes import Child, Supervisor
from quorate.localnet.run_dir import RunDir
from quorate.units import Address

__all__ = ["HOST", "READY_S", "Agents", "agents", "command_of"]

HOST = ("-m", "quorate.host")
"""What Python runs as an agent; its one argument is the agent's home."""
READY_S = 120.0  # 4 s on a free machine; open-aea's first import is most of it


@dataclass(frozen=True)
class Agents:
    """The agents of one service, by name: `agent-1` and so on, in the order of their wallets.

    One that ends by itself is started again (`Crew`); one that was killed by `kill` stays down until `start`.
    """

    files: Mapping[str, AgentFile]
    _crew: Crew

    @property
    def names(self) -> dict[Address, str]:
        """The name of each agent by its address, for the view."""
        return {file.me: name for name, file in self.files.items()}

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The agents' addresses, in the order of their names."""
        return tuple(file.me for file in self.files.values())

    @property
    def event_files(self) -> tuple[Path, ...]:
        """Where the agents tell what happens."""
        return tuple(file.events for file in self.files.values())

    def child(self, name: str) -> Child:
        """The process of an agent; its validator is a process below it."""
        return self._crew.child(name)

    async def start(self, *names: str, ready_s: float = READY_S) -> None:
        """Start these agents (all, if none is named) and wait until each is ready.

        An agent that was killed takes up its state where it left it. Raises `SetupError` if one is not ready in time.
        """
        await self._crew.start(*names)
        await self._crew.ready(*names, within_s=ready_s)

    async def kill(self, *names: str) -> None:
        """End these agents and their validators at once, as a power cut would; `start` brings them back."""
        await self._crew.kill(*names)

    async def stop(self) -> None:
        """End all agents in order, each with its validator, at the same time."""
        await self._crew.stop()


@asynccontextmanager
async def agents(
    supervisor: Supervisor,
    run: RunDir,
    *,
    root: Path,
    service: Path,
    wallets: Sequence[Wallet],
    cometbft: Path,
    evm: EvmSettings | None = None,
    config: Mapping[str, Any] | None = None,
    node_settings: Mapping[str, str] | None = None,
    host: Sequence[str] = HOST,
) -> AsyncIterator[Agents]:
    """Make a chain for one agent a wallet, start them all, and stop them at the end of the block.

    `service` is a folder below `root`, such as services/hello_world; `config` overrides its service.yaml, alike for
    all; `node_settings` are CometBFT's by "section.key". Every call makes a new chain with new validator keys.
    """
    folder = _below(root, service)
    passphrase = new_passphrase()
    with held_ports(len(wallets)) as ports:  # to the end: an agent that is started again needs its port again
        files = _write_homes(run, root, folder, wallets, ports, cometbft, evm, config or {}, node_settings, passphrase)
        commands = {name: command_of(file, root, host, passphrase) for name, file in files.items()}
        quorum = Agents(files, Crew(supervisor, commands))
        await quorum.start()
        yield quorum
        await quorum.stop()  # after an error the supervisor does it, and says so if one had ended by itself


def _write_homes(
    run: RunDir,
    root: Path,
    folder: Path,
    wallets: Sequence[Wallet],
    ports: Sequence[int],
    cometbft: Path,
    evm: EvmSettings | None,
    config: Mapping[str, Any],
    node_settings: Mapping[str, str] | None,
    passphrase: str,
) -> dict[str, AgentFile]:
    service: Service = load_service(root / folder)
    chain_id = (
        f"{service.name[:40]}-{secrets.token_hex(3)}"  # new for each run: nothing signed in another one counts here
    )
    files = {}
    rpc = [run.scratch / f"a{number}" / "rpc.sock" for number in range(1, len(wallets) + 1)]
    for number, (wallet, port) in enumerate(zip(wallets, ports, strict=True), 1):
        name = f"agent-{number}"
        home = run.scratch / f"a{number}"
        file = AgentFile(
            home=home,
            service=str(folder),
            name=name,
            me=wallet.address,
            keystore=home / "keystore.json",
            chain_id=chain_id,
            socket_dir=home,
            comet_home=home / "cometbft",
            cometbft=cometbft.absolute(),
            p2p_port=port,
            events=run.events / f"{name}.jsonl",
            evidence_dir=run.path / "evidence" / name,
            peers=tuple(f"unix://{socket}" for other, socket in enumerate(rpc, 1) if other != number),
            evm=evm,
            config=config,
        )
        file.save()
        save_keystore(wallet, file.keystore, passphrase)
        file.evidence_dir.mkdir(parents=True)
        file.comet_home.mkdir()
        (file.comet_home / "node.log").symlink_to(run.logs / f"{name}-cometbft.log")  # a log stays, scratch does not
        files[name] = file
    make_testnet(
        [file.comet_home for file in files.values()],
        chain_id=chain_id,
        service=service,
        signers=wallets,
        ports=ports,
        config_hash=load_settings(service, root / folder, config).config_hash(),
        settings=node_settings,
    )
    return files


def command_of(file: AgentFile, root: Path, host: Sequence[str], passphrase: str) -> Command:
    """How an agent's process is started."""
    return Command(
        argv=(sys.executable, "-P", *host, file.home),
        env={PASSPHRASE: passphrase, "PYTHONPATH": f"{root / 'src'}:{root}"},
        cwd=root,
        events=file.events,
        parting="left",
        again_after=UpgradeDue.exit_code,
    )


def _below(root: Path, service: Path) -> Path:
    """`service` as a path from the root; each agent finds it there by itself."""
    folder = (root / service).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise ConfigError(
            f"{folder} is not below {root}", fix="run a service of this project, such as services/hello_world"
        )
    return folder.relative_to(root.resolve())
