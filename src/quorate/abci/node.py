"""A CometBFT node as a child process: started with our sockets, dead when its agent dies, never dead unnoticed.

- The kernel kills it when the thread that started it ends (PR_SET_PDEATHSIG), also after kill -9 of the agent. So
  start it from the thread whose loop runs the agent.
- CometBFT ends with exit code 0 when its application fails: every end that `stop` did not ask for is a `NodeExited`.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from quorate.abci.rpc import NodeUnreachable, ask, number, read
from quorate.abci.server import check_socket_path
from quorate.errors import QuorateError, SetupError

__all__ = ["Broadcast", "Node", "NodeExited", "NodeUnreachable", "Status"]

_PR_SET_PDEATHSIG = 1
_GRACE_S = 5.0
_RPC_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2000
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec nothing may be loaded


class NodeExited(QuorateError):
    """CometBFT ended by itself. `code` is its exit status; 0 too is a fault here."""

    def __init__(self, code: int, last_lines: str) -> None:
        super().__init__(
            f"CometBFT ended by itself with exit code {code}; its log ends with:\n{last_lines or '(nothing)'}",
            fix="Restart the agent; its state is kept. If it ends again, the log names the reason.",
        )
        self.code = code
        self.last_lines = last_lines


@dataclass(frozen=True)
class Status:
    """Where the node is."""

    height: int
    is_catching_up: bool
    app_hash: str
    """The app hash in the last block's header (upper-case hex): the state after the block before."""


@dataclass(frozen=True)
class Broadcast:
    """What the mempool said to a transaction: code 0 is accepted."""

    code: int
    log: str


class Node:
    """The validator's CometBFT. `sockets` is a short folder for its two unix sockets, which nobody else uses."""

    def __init__(self, home: Path, binary: Path, sockets: Path) -> None:
        self.home, self.binary = Path(home), Path(binary)
        self.abci_socket, self.rpc_socket = Path(sockets) / "abci.sock", Path(sockets) / "rpc.sock"
        self.log = self.home / "node.log"
        self.exited: asyncio.Future[NodeExited] = asyncio.get_running_loop().create_future()
        """Done, with the error as its result, when the node ended and nobody had asked it to."""
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """The child's process id, or None before `start`."""
        return None if self._process is None else self._process.pid

    async def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the process. The application must listen on `abci_socket` already.

        `environment` holds settings for this start alone, as CometBFT reads them there (`CMT_SECTION_KEY`).
        """
        check_socket_path(self.abci_socket)
        check_socket_path(self.rpc_socket)
        self.rpc_socket.unlink(missing_ok=True)
        command = [str(self.binary), "start", "--home", str(self.home)]
        command += ["--proxy_app", f"unix://{self.abci_socket}", "--rpc.laddr", f"unix://{self.rpc_socket}"]
        with self.log.open("ab") as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**_environment(), **(environment or {})},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal is for the agent, which stops its node in order
                    preexec_fn=_DieWithParent(os.getpid()),
                )
            except OSError as error:
                raise SetupError(
                    f"CometBFT could not be started from {self.binary}: {error}",
                    fix="Run ./quorate doctor; it says what is missing.",
                ) from error
        self._watch = asyncio.create_task(self._notice_exit(self._process))

    async def stop(self) -> None:
        """End the process (TERM, then KILL) and wait until it is gone. May be called twice."""
        self._is_stopping = True
        await self.close_client()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _GRACE_S)
            except TimeoutError:
                self._process.kill()
        if self._watch is not None:
            await self._watch
        self.rpc_socket.unlink(missing_ok=True)

    async def close_client(self) -> None:
        """Drop the connection to the RPC; a later question opens a new one."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def status(self) -> Status:
        """Where the node is now; `NodeUnreachable` where it does not answer."""
        return read(await self._ask("status"), "its status", _status)

    async def first_block(self) -> int:
        """The height of the oldest block that is not pruned."""
        first = "earliest_block_height"
        return read(await self._ask("status"), "its first block", lambda said: number(said["sync_info"][first]))

    async def broadcast_tx(self, tx: bytes) -> Broadcast:
        """Hand `tx` to the node's mempool and say what its check said. One that is there already is accepted."""
        answer = await self._ask("broadcast_tx_sync", tx=base64.b64encode(tx).decode())
        if (error := answer.get("error")) is not None:
            text = f"{error.get('message', '')}: {error.get('data', '')}" if isinstance(error, dict) else str(error)
            return Broadcast(0 if "already exists in cache" in text else 1, text[:_LOG_TAIL_BYTES])
        return read(answer, "a transaction", _checked)

    async def peers(self) -> frozenset[str]:
        """The ids of the nodes that this one is connected with."""
        return read(await self._ask("net_info"), "its peers", _peers)

    async def powers(self) -> dict[str, int]:
        """The voting power of each validator, by its address (upper-case hex)."""
        return read(await self._ask("validators"), "the validators", _powers)

    async def _ask(self, method: str, **params: str) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self.rpc_socket)), timeout=aiohttp.ClientTimeout(_RPC_TIMEOUT_S)
            )
        return await ask(self._session, "http://node/", method, params)

    async def _notice_exit(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        if not self._is_stopping and not self.exited.done():
            self.exited.set_result(NodeExited(code, self._last_lines()))

    def _last_lines(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()


def _status(said: Any) -> Status:
    info = said["sync_info"]
    return Status(number(info["latest_block_height"]), bool(info["catching_up"]), str(info["latest_app_hash"]))


def _checked(said: Any) -> Broadcast:
    if type(said["code"]) is not int:
        raise ValueError(f"{said['code']!r:.80} is no code")
    return Broadcast(said["code"], str(said["log"])[:_LOG_TAIL_BYTES])


def _peers(said: Any) -> frozenset[str]:
    return frozenset(str(peer["node_info"]["id"]) for peer in said["peers"])


def _powers(said: Any) -> dict[str, int]:
    return {str(one["address"]): number(one["voting_power"]) for one in said["validators"]}


def _environment() -> dict[str, str]:
    """Ours without the keystore's passphrase, which is for the agent alone.

    GOGC: Go lets memory grow to twice what lives. Half as much on top will do: two collections a second at full speed.
    """
    return {"GOGC": "50"} | {name: value for name, value in os.environ.items() if name != "QUORATE_PASSPHRASE"}


class _DieWithParent:
    """Between fork and exec: ask the kernel for KILL at the parent's end, and end if that was already."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def __call__(self) -> None:
        if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != self._parent:
            os._exit(1)
