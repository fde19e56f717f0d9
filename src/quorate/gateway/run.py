"""One gateway from start to end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from quorate.chain import Chain, OperatorRegistry, Wallet
from quorate.gateway.api_keys import KeyFile
from quorate.gateway.config import GatewayConfig
from quorate.gateway.errors import REFUSALS
from quorate.gateway.ledger import Ledger
from quorate.gateway.registry import KnownRegistry
from quorate.gateway.server import Gateway
from quorate.model import Limits, Measured, ModelClient

__all__ = ["serve"]


async def serve(config: GatewayConfig, passphrase: str, ready: Callable[[str], None]) -> None:
    """Serve until cancelled, then let what is in progress end; `ready` is told the URL. Raises QuorateError."""
    wallet = await asyncio.to_thread(Wallet.from_keystore, config.keystore, passphrase)
    limits = Limits(timeout_s=config.timeout_s, gap_s=config.gap_s, refusals=REFUSALS)
    async with contextlib.AsyncExitStack() as stack:
        chain = await stack.enter_async_context(await Chain.connect(config.evm.url, config.evm.chain_id))
        registry = KnownRegistry(OperatorRegistry(chain, config.evm.registry))
        stack.push_async_callback(registry.close)
        await registry.operators()  # a wrong address is told now, not to the first caller
        ledger = stack.enter_context(contextlib.closing(Ledger(config.ledger)))
        client = await stack.enter_async_context(ModelClient(registry, wallet, limits=limits, router=Measured()))
        gateway = Gateway(client, registry, KeyFile(config.keys), ledger, config)
        stack.push_async_callback(gateway.close)
        port = await gateway.bind()
        host = f"[{config.host}]" if ":" in config.host else config.host
        ready(f"http://{host}:{port}/v1")
        await asyncio.Event().wait()
