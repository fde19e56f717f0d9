"""A gateway in front of the operators of `tests.model_world`: all real, over HTTP on loopback, but for the models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import TestServer

from quorate.gateway import Gateway, GatewayConfig, KeyFile, Ledger
from quorate.model import Limits, Measured, ModelClient
from quorate.operator.config import EvmConfig
from tests.model_world import CHAIN_ID, CLIENT, HELLO, REGISTRY, World, world

ASKED: dict[str, Any] = {"model": "talker", "messages": HELLO}


@dataclass
class Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes
    json: Any


@dataclass
class Front:
    """A gateway that listens, and a caller with a key."""

    place: World
    folder: Path
    router: Measured
    keys: KeyFile
    ledger: Ledger
    stack: AsyncExitStack
    url: str = ""
    key: str = ""
    session: aiohttp.ClientSession = field(init=False)

    async def ask(self, asked: Any = None, path: str = "/chat/completions", **sent: Any) -> Answered:
        """POST; with `data`, these bytes instead."""
        headers = sent.pop("headers", {"Authorization": f"Bearer {self.key}"})
        body = sent if "data" in sent else {"json": ASKED if asked is None else asked}
        async with self.session.post(self.url + path, headers=headers, **body) as response:
            return await _answered(response)

    async def get(self, path: str, key: str | None = None) -> Answered:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        async with self.session.get(self.url + path, headers=headers) as response:
            return await _answered(response)


async def _answered(response: aiohttp.ClientResponse) -> Answered:
    body = await response.read()
    is_json = response.content_type == "application/json"
    return Answered(response.status, response.headers.copy(), body, await response.json() if is_json else None)


def config_of(folder: Path, **changes: Any) -> GatewayConfig:
    said: dict[str, Any] = {
        "keystore": folder / "wallet.json",
        "evm": EvmConfig(url="http://127.0.0.1:1", chain_id=CHAIN_ID, registry=REGISTRY),
        "keys": folder / "keys.json",
        "ledger": folder / "ledger.jsonl",
    }
    return GatewayConfig(**said | changes)


@asynccontextmanager
async def front(folder: Path, limits: dict[str, Any] | None = None, **changes: Any) -> AsyncIterator[Front]:
    async with world() as place, AsyncExitStack() as stack:
        config = config_of(folder, **changes)
        router, keys = Measured(), KeyFile(config.keys)
        ledger = stack.enter_context(closing(Ledger(config.ledger)))
        asking = Limits(**{"timeout_s": 5, "gap_s": 2, "refusals": 2} | (limits or {}))
        client = await stack.enter_async_context(ModelClient(place.registry, CLIENT, limits=asking, router=router))
        gateway = Gateway(client, place.registry, keys, ledger, config)
        server = await stack.enter_async_context(TestServer(gateway.application()))
        one = Front(place, folder, router, keys, ledger, stack)
        one.url = str(server.make_url("/v1"))
        one.key = keys.make("alice")
        one.session = await stack.enter_async_context(aiohttp.ClientSession())
        yield one
