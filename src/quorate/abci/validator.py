"""One agent's validator: the application's server and its CometBFT node, started, watched and stopped as one thing."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from quorate.abci import config
from quorate.abci.anchor import find_anchor
from quorate.abci.app import ServiceApp
from quorate.abci.genesis import BindingSigner, Genesis, Member, has_signed, make_identity
from quorate.abci.node import Node, NodeExited
from quorate.abci.server import Server, serve
from quorate.errors import ConfigError
from quorate.fsm import Service

__all__ = ["Validator", "forget_blocks", "make_joiner", "make_testnet"]

_PATIENCE_S = 15.0  # an agent that has voted before and lost its state waits this long for peers that know more
_ASK_AGAIN_S = 0.5
_log = logging.getLogger(__name__)


class Validator:
    """`async with Validator(app, home, binary, sockets) as validator: error = await validator.failed`

    `home` holds CometBFT's config and data and may lie on a RAM disk; `sockets` is a short folder of this agent's own.
    `peers` are RPC addresses of other members' nodes (`unix:///folder/rpc.sock`, or `http://host:port` in a network
    that nobody else is in): an agent that lost its state asks them where the chain is and takes a snapshot. Name those
    of all members of today: more of them have to agree than could lie among as many. Without them it fetches every
    block from the first one, which works as long as no peer has pruned.
    """

    def __init__(self, app: ServiceApp, home: Path, binary: Path, sockets: Path, peers: Sequence[str] = ()) -> None:
        self.app = app
        self.node = Node(home, binary, sockets)
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Done when the application or CometBFT (with whatever exit code) failed; its result is the exception.

        Nothing is restarted here: stop, and start both again. The state is durable, the node replays what is missing.
        """
        self._peers = tuple(peers)
        self._server: Server | None = None

    async def start(self) -> None:
        """Listen, then start the node. Returns before the node has caught up; see `node.status()`."""
        if self.app.has_half_a_snapshot:
            forget_blocks(self.node.home)
        self._server = await serve(self.app, self.node.abci_socket)
        self._server.failed.add_done_callback(self._fail)
        self.app.failed.add_done_callback(self._fail)
        self.node.exited.add_done_callback(self._exited)
        await self.node.start(await self._state_sync())
        self.app.start(self.node.broadcast_tx)

    async def _state_sync(self) -> dict[str, str]:
        """Settings that let the node begin with a snapshot; none where there is nothing to catch up with."""
        archive = self.app.archive
        if self.app.height or archive is None or not self._peers:
            return {}
        is_needed = self.app.awaits_snapshot  # whatever the chain's length: its first blocks are another version's
        reach = 0 if is_needed else archive.retention.snapshot_every * archive.retention.snapshots
        waits = is_needed or has_signed(self.node.home)
        members = max(len(self.app.genesis.members), len(self._peers) + 1)  # it may have grown; the state is lost
        deadline = asyncio.get_running_loop().time() + (_PATIENCE_S if waits else 0)
        while True:
            anchor = await find_anchor(self._peers, members, reach)
            if anchor is not None:
                _log.info("the state is lost; a snapshot is asked for, trusting block %d", anchor.height)
                return anchor.settings()
            if asyncio.get_running_loop().time() >= deadline:
                return {}
            await asyncio.sleep(_ASK_AGAIN_S)

    async def stop(self) -> None:
        """Stop the node, then the application, so that the node never sees its application fail."""
        await self.node.stop()
        if self._server is not None:
            await self._server.close()
        await self.app.stop()

    async def __aenter__(self) -> Validator:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _fail(self, source: asyncio.Future[Exception]) -> None:
        if not source.cancelled() and not self.failed.done():
            self.failed.set_result(source.result())

    def _exited(self, source: asyncio.Future[NodeExited]) -> None:
        """The node ends when its application fails; then the application's error is the one worth telling."""
        cause = next(
            (f.result() for f in (self._server and self._server.failed, self.app.failed) if f and f.done()), None
        )
        if not source.cancelled() and not self.failed.done():
            self.failed.set_result(cause or source.result())


def forget_blocks(home: Path) -> None:
    """Empty the node in `home` of all but its keys and of what it has signed: it begins with a snapshot again."""
    _log.info("a snapshot was taken and no block followed; the node begins anew")
    for path in (home / "data").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "priv_validator_state.json":
            path.unlink()


def make_testnet(
    homes: Sequence[Path],
    *,
    chain_id: str,
    service: Service,
    signers: Sequence[BindingSigner],
    ports: Sequence[int],
    config_hash: str = "",
    settings: Mapping[str, str] | None = None,
) -> Genesis:
    """Write the home of each validator of a new chain on this machine (keys, genesis, config) and return the genesis.

    The i-th signer is the agent of the i-th home, and its node listens on 127.0.0.1 at the i-th port. Keys that are
    in a home already are kept. `settings` are CometBFT's, by "section.key".
    """
    if not len(homes) == len(signers) == len(ports) or not homes:
        raise ConfigError(
            f"{len(homes)} homes, {len(signers)} signers and {len(ports)} ports; expected as many of each, at least one"
        )
    identities = [make_identity(home) for home in homes]
    members = [Member.bind(identity, chain_id, signer) for identity, signer in zip(identities, signers, strict=True)]
    genesis = Genesis.create(chain_id, service, members, config_hash)
    peers = [config.Peer(identity.node_id, port) for identity, port in zip(identities, ports, strict=True)]
    for home, me in zip(homes, peers, strict=True):
        genesis.save(home)
        config.save(home, me, peers, settings)
    return genesis


def make_joiner(
    home: Path,
    *,
    genesis: Genesis,
    signer: BindingSigner,
    port: int,
    peers: Sequence[config.Peer],
    settings: Mapping[str, str] | None = None,
) -> Member:
    """Write the home of an agent that is to join a running chain; returns the member that the others have to approve.

    `peers` are the members' nodes: it dials them, and needs no place in their configuration. Keys that are in the home
    already are kept, and never belong to a validator that votes elsewhere.
    """
    identity = make_identity(home)
    genesis.save(home)
    config.save(home, config.Peer(identity.node_id, port), peers, settings)
    return Member.bind(identity, genesis.chain_id, signer)
