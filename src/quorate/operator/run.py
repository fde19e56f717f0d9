"""One operator from start to end: port, models, registry, service, and all of it stopped again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from quorate.chain import Chain, Model, Offer, OperatorRegistry, Wallet
from quorate.errors import ConfigError
from quorate.events import EventWriter
from quorate.operator.config import ModelConfig, OperatorConfig
from quorate.operator.manifest import hash_folder
from quorate.operator.model_server import ModelServer, compute_memory_need
from quorate.operator.sidecar import Identity, Sidecar, Upstream
from quorate.operator.stake import ensure_staked
from quorate.units import Hash

__all__ = ["serve"]

_UNIX = "unix://"


async def serve(config: OperatorConfig, passphrase: str, events: EventWriter) -> NoReturn:
    """Serve until cancelled. Raises QuorateError where the start fails or a model server ends by itself.

    What can fail fast comes first (keys, chain, port, memory); the registry hears of us when we can answer.
    """
    account = await asyncio.to_thread(Wallet.from_keystore, config.keystore, passphrase)
    key = await asyncio.to_thread(Wallet.from_keystore, config.key, passphrase) if config.key else account
    async with contextlib.AsyncExitStack() as stack:
        chain = await stack.enter_async_context(await Chain.connect(config.evm.url, config.evm.chain_id))
        registry = OperatorRegistry(chain, config.evm.registry)
        identity = Identity(chain.chain_id, registry.address, account.address, key)
        sidecar = await stack.enter_async_context(Sidecar(identity, limits=config.limits, clients=config.clients))
        port = await sidecar.bind(config.host, config.port)
        endpoint = config.endpoint or f"http://{_in_url(config.host)}:{port}"
        server = await _start_models(config, stack, events)
        models = await asyncio.to_thread(_manifests, config.models)  # while the models load
        if server is not None:
            began = time.monotonic()
            await server.ready()
            events.emit("models", seconds=round(time.monotonic() - began, 1))
        sidecar.serve([_upstream(one, model, server) for one, model in zip(config.models, models, strict=True)])
        offer = Offer(
            key=key.address,
            endpoint=endpoint,
            models=tuple(models),
            region=config.region,
            device_class=config.device_class,
            capacity=config.limits.at_once,
        )
        place = await ensure_staked(registry, account, offer, config.stake)
        events.emit("registered", operator=account.address, stake=place.stake, sent=list(place.sent))
        events.emit("ready", address=account.address, endpoint=endpoint, models=[one.name for one in models])
        if server is not None:
            raise await server.wait()
        await asyncio.Event().wait()
    raise AssertionError("unreachable: an operator serves until it is cancelled")


async def _start_models(
    config: OperatorConfig, stack: contextlib.AsyncExitStack, events: EventWriter
) -> ModelServer | None:
    """The server of those models that have no upstream, started but not ready; None where all have one."""
    own = [one.served() for one in config.models if one.upstream is None]
    need = compute_memory_need(own) if own else 0
    events.emit("starting", models=[one.name for one in config.models], memory_need=need)
    if not own:
        return None
    if config.model_python is None:
        raise ConfigError("model_python is not given", fix="give the model environment's Python, or upstreams")
    return await stack.enter_async_context(ModelServer(config.model_python, own, config.logs))


def _manifests(models: Sequence[ModelConfig]) -> list[Model]:
    return [Model(one.name, one.manifest_hash or _hash_of(one), one.price_in, one.price_out) for one in models]


def _hash_of(model: ModelConfig) -> Hash:
    if model.folder is None:
        raise ConfigError(f"model {model.name!r} has neither folder nor manifest_hash")
    return hash_folder(model.folder)


def _upstream(config: ModelConfig, model: Model, server: ModelServer | None) -> Upstream:
    if config.upstream is not None and config.upstream.startswith(_UNIX):
        return Upstream(model, config.task, "http://model", Path(config.upstream.removeprefix(_UNIX)))
    if config.upstream is not None:
        return Upstream(model, config.task, config.upstream.rstrip("/"))
    if server is None:
        raise AssertionError(f"{model.name} has no upstream and no server was started")
    return Upstream(model, config.task, "http://model", server.socket(model.name))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
