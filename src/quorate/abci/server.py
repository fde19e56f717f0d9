"""An ABCI 2.0 server for asyncio: CometBFT asks, an `Application` answers. Usable alone; it knows nothing of Quorate.

    class Counter(Application):
        async def finalize_block(self, request): ...

    server = await serve(Counter(), "/tmp/x/abci.sock")     # then: cometbft start --proxy_app unix:///tmp/x/abci.sock

- Four connections come from one node (consensus, mempool, query, snapshot). Each gets its answers in the order of its
  requests; a handler that awaits lets only the other connections run.
- A handler that raises ends the application: the node is told (it stops), no connection gets another answer, and
  `Server.failed` holds the exception. Nothing is retried: a state machine that failed once would diverge.
- Frames are a uvarint length and a message, both ways. One that is too large or no request closes its connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.errors import ConfigError

__all__ = ["MAX_FRAME_BYTES", "MAX_SOCKET_PATH_BYTES", "Application", "FrameError", "Server", "encode_frame", "serve"]

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""The largest request that is read; a block of CometBFT's largest size is 100 MB, ours are at most 4."""
MAX_SOCKET_PATH_BYTES = 100
"""Linux takes 107; a few are left for a suffix."""

_log = logging.getLogger(__name__)


class FrameError(Exception):
    """What arrived is not an ABCI frame."""


class Application:
    """The sixteen ABCI 2.0 calls with answers that are safe when left as they are; override what the application needs.

    The defaults accept every transaction, proposal and extension, keep no state, and take part in no snapshot.
    """

    async def echo(self, request: pb.RequestEcho) -> pb.ResponseEcho:
        """The same text: CometBFT's own test of the connection."""
        return pb.ResponseEcho(message=request.message)

    async def flush(self, request: pb.RequestFlush) -> pb.ResponseFlush:
        """Nothing; answers are never held back."""
        return pb.ResponseFlush()

    async def info(self, request: pb.RequestInfo) -> pb.ResponseInfo:
        """The height and app hash that are durable; CometBFT replays what came later. Height 0: from the beginning."""
        return pb.ResponseInfo()

    async def init_chain(self, request: pb.RequestInitChain) -> pb.ResponseInitChain:
        """Begin the chain; the app hash, validators and parameters that differ from the genesis."""
        return pb.ResponseInitChain()

    async def query(self, request: pb.RequestQuery) -> pb.ResponseQuery:
        """An answer to a question from outside; agreed on by nobody."""
        return pb.ResponseQuery()

    async def check_tx(self, request: pb.RequestCheckTx) -> pb.ResponseCheckTx:
        """Whether the mempool takes a transaction (code 0). Must settle: the same one is asked about again."""
        return pb.ResponseCheckTx()

    async def prepare_proposal(self, request: pb.RequestPrepareProposal) -> pb.ResponsePrepareProposal:
        """The transactions as they came, as many as fit."""
        room = request.max_tx_bytes
        txs: list[bytes] = []
        for tx in request.txs:
            if (room := room - len(tx)) < 0:
                break
            txs.append(tx)
        return pb.ResponsePrepareProposal(txs=txs)

    async def process_proposal(self, request: pb.RequestProcessProposal) -> pb.ResponseProcessProposal:
        """Whether to vote for a proposal: by it and the last state alone, so that all say the same of it."""
        return pb.ResponseProcessProposal(status=pb.ResponseProcessProposal.ACCEPT)

    async def extend_vote(self, request: pb.RequestExtendVote) -> pb.ResponseExtendVote:
        """What rides on this validator's precommit; the next proposer reads it."""
        return pb.ResponseExtendVote()

    async def verify_vote_extension(self, request: pb.RequestVerifyVoteExtension) -> pb.ResponseVerifyVoteExtension:
        """Whether another's extension is sound. The same on all nodes at any time, or the chain may halt."""
        return pb.ResponseVerifyVoteExtension(status=pb.ResponseVerifyVoteExtension.ACCEPT)

    async def finalize_block(self, request: pb.RequestFinalizeBlock) -> pb.ResponseFinalizeBlock:
        """What the decided block does: a result for each transaction, the app hash. Nothing is durable yet."""
        return pb.ResponseFinalizeBlock(tx_results=[pb.ExecTxResult() for _ in request.txs])

    async def commit(self, request: pb.RequestCommit) -> pb.ResponseCommit:
        """Make it durable; answers the height below which CometBFT may drop blocks (0: none)."""
        return pb.ResponseCommit()

    async def list_snapshots(self, request: pb.RequestListSnapshots) -> pb.ResponseListSnapshots:
        """The snapshots that a peer may fetch."""
        return pb.ResponseListSnapshots()

    async def offer_snapshot(self, request: pb.RequestOfferSnapshot) -> pb.ResponseOfferSnapshot:
        """Whether to take a peer's snapshot, whose app hash a light client has verified."""
        return pb.ResponseOfferSnapshot(result=pb.ResponseOfferSnapshot.REJECT)

    async def load_snapshot_chunk(self, request: pb.RequestLoadSnapshotChunk) -> pb.ResponseLoadSnapshotChunk:
        """A part of one of our snapshots, for a peer."""
        return pb.ResponseLoadSnapshotChunk()

    async def apply_snapshot_chunk(self, request: pb.RequestApplySnapshotChunk) -> pb.ResponseApplySnapshotChunk:
        """Take a part of the snapshot that was accepted, and say how to go on."""
        return pb.ResponseApplySnapshotChunk(result=pb.ResponseApplySnapshotChunk.ABORT)


class Server:
    """A listening ABCI server. Made by `serve`."""

    def __init__(self, app: Application, path: Path) -> None:
        self.path = path
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Done when a handler raised; its *result* is that exception. The host must look at it and stop."""
        self._app = app
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def _listen(self) -> None:
        self._listener = await asyncio.start_unix_server(self._connected, str(self.path))
        self.path.chmod(0o600)

    async def close(self) -> None:
        """Close every connection and remove the socket. The node stops then: stop it first where its end matters."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self.failed.done():
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._answer_all(reader, writer)
        except FrameError as error:
            _log.error("closed an ABCI connection: %s", error)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the node closed it; whether the node was meant to end is seen where its process is watched
        except asyncio.CancelledError:
            pass  # closed by us
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await _read_request(reader)
            if self.failed.done():
                return
            response = await self._answer(request)
            writer.write(encode_frame(response))
            if self.failed.done():
                await writer.drain()
                return
            if writer.transport.get_write_buffer_size() > 1 << 20:
                await writer.drain()

    async def _answer(self, request: pb.Request) -> pb.Response:
        call = request.WhichOneof("value")
        if call is None:
            raise FrameError("a request without a call, or with one that ABCI 2.0 does not have")
        try:
            answer = await getattr(self._app, call)(getattr(request, call))
        except (
            Exception
        ) as error:  # whatever it is, the application is no longer to be trusted: tell the node and the host
            _log.exception("the application failed in %s; the node is stopped", call)
            if not self.failed.done():
                self.failed.set_result(error)
            return pb.Response(exception=pb.ResponseException(error=f"{type(error).__name__}: {error}"))
        return pb.Response(**{call: answer})


async def serve(app: Application, path: str | Path) -> Server:
    """Answer ABCI calls for `app` on the unix socket at `path`, which only this user may open; returns once it listens.

    A socket left at `path` by an earlier life is replaced; anything else there is a `ConfigError`.
    """
    path = Path(path)
    check_socket_path(path)
    if path.is_symlink() or path.exists():
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"{path} exists and is no socket", fix="Name another path for the ABCI socket.")
        path.unlink()
    server = Server(app, path)
    await server._listen()
    return server


def check_socket_path(path: Path) -> None:
    """Raise `ConfigError` where the system could not take `path` as a unix socket."""
    if (size := len(os.fsencode(path))) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the socket path {path} has {size} bytes; at most {MAX_SOCKET_PATH_BYTES} fit",
            fix="Choose a shorter folder for sockets, for example one under /tmp.",
        )


def encode_frame(message: Message) -> bytes:
    """`message` with its length before it, as CometBFT writes it."""
    body = message.SerializeToString()
    size, head = len(body), bytearray()
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + body


async def _read_request(reader: asyncio.StreamReader) -> pb.Request:
    size = await _read_size(reader)
    try:
        return pb.Request.FromString(await reader.readexactly(size))
    except DecodeError as error:
        raise FrameError(f"{size} bytes that are no ABCI request: {error}") from error


async def _read_size(reader: asyncio.StreamReader) -> int:
    size = 0
    for shift in range(0, 35, 7):
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are read")
            return size
    raise FrameError("a frame's length of more than five bytes")
