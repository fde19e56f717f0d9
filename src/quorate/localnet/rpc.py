"""Questions to a CometBFT node by its unix socket, from a process that did not start it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from quorate.abci import NodeUnreachable
from quorate.abci.rpc import ask

__all__ = ["NodeRpc"]

_TIMEOUT_S = 3.0


class NodeRpc:
    """`async with NodeRpc(socket) as node: await node.ask("status")`; `NodeUnreachable` where no answer comes."""

    def __init__(self, socket: Path, timeout_s: float = _TIMEOUT_S) -> None:
        self._socket = socket
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(timeout_s)
        )

    async def ask(self, method: str, **params: Any) -> Any:
        """The result of a JSON-RPC method of CometBFT."""
        answer = await ask(self._session, "http://node/", method, params)
        if "result" not in answer:
            raise NodeUnreachable(f"the node at {self._socket} refuses {method}: {answer.get('error')!s:.300}")
        return answer["result"]

    async def application(self) -> dict[str, Any]:
        """What the agent's application says of itself (its `/status`)."""
        response = (await self.ask("abci_query", path="/status", data="", height="0", prove=False))["response"]
        if response.get("code"):
            raise NodeUnreachable(f"the application behind {self._socket} refuses /status: {response.get('log')}")
        said: dict[str, Any] = json.loads(base64.b64decode(response["value"]))
        return said

    async def __aenter__(self) -> NodeRpc:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
