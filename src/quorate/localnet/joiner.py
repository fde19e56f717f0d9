"""One more agent for a service that runs on this machine: its home, its process, and what it is to the others.

async with Supervisor(run.logs) as supervisor, joiner(supervisor, run, root, files, members) as new:
    ...  # let the others approve Change(join=new.member)
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from quorate.abci import Genesis, make_joiner
from quorate.abci.config import Peer
from quorate.chain import Wallet
from quorate.host.agent_file import AgentFile
from quorate.localnet.agents import HOST, READY_S, command_of
from quorate.localnet.crew import Crew
from quorate.localnet.keys import new_passphrase, save_keystore
from quorate.localnet.ports import held_ports
from quorate.localnet.processes import Child, Supervisor
from quorate.localnet.run_dir import RunDir
from quorate.members import Member

__all__ = ["Joiner", "joiner"]


@dataclass(frozen=True)
class Joiner:
    """An agent that follows the chain, and acts once the others have let it in."""

    file: AgentFile
    member: Member
    """What the others have to approve."""
    child: Child


@asynccontextmanager
async def joiner(
    supervisor: Supervisor, run: RunDir, root: Path, files: Sequence[AgentFile], members: Sequence[Member]
) -> AsyncIterator[Joiner]:
    """Start one more agent beside those of `files`, of which `members` are the service's; it ends with the block.

    It has new keys, the service's genesis, and what the first agent was started with otherwise.
    """
    number = 1 + max(int(file.home.name[1:]) for file in files)
    with held_ports(1) as ports:
        file, member, passphrase = _write_home(run, files, members, number, ports[0])
        crew = Crew(supervisor, {file.name: command_of(file, root, HOST, passphrase)})
        await crew.start()
        await crew.ready(within_s=READY_S)
        yield Joiner(file, member, crew.child(file.name))
        if crew.child(file.name).returncode is None:
            await crew.stop()


def _write_home(
    run: RunDir, files: Sequence[AgentFile], members: Sequence[Member], number: int, port: int
) -> tuple[AgentFile, Member, str]:
    like, wallet, passphrase = files[0], Wallet.create(), new_passphrase()
    home, name = run.scratch / f"a{number}", f"agent-{number}"
    file = dataclasses.replace(
        like,
        home=home,
        name=name,
        me=wallet.address,
        keystore=home / "keystore.json",
        socket_dir=home,
        comet_home=home / "cometbft",
        p2p_port=port,
        events=run.events / f"{name}.jsonl",
        evidence_dir=run.path / "evidence" / name,
        peers=tuple(f"unix://{other.socket_dir / 'rpc.sock'}" for other in files),
        joins=True,
    )
    home.mkdir(mode=0o700)
    file.evidence_dir.mkdir(parents=True)
    file.comet_home.mkdir()
    (file.comet_home / "node.log").symlink_to(run.logs / f"{name}-cometbft.log")
    save_keystore(wallet, file.keystore, passphrase)
    ports = {other.me: other.p2p_port for other in files}
    peers = [Peer(one.node_id, ports[one.address]) for one in members if one.address in ports]
    genesis = Genesis.load(like.comet_home)
    member = make_joiner(file.comet_home, genesis=genesis, signer=wallet, port=port, peers=peers)
    file.save()  # last: from now on other commands see it
    return file, member, passphrase
