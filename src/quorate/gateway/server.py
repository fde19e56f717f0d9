"""The gateway's HTTP server: OpenAI's API in front, staked operators behind.

- A caller shows an API key. Its request is checked here, so that nobody's mistake is taken for an operator's; it is
  asked in the gateway's own name, and paid for by it.
- A whole answer is passed on byte for byte, with the operator's receipt in `X-Quorate-Receipt`. A stream is made
  by as many operators as it takes; their receipts come as comments before its end.
- Every answer has an id, in `X-Request-Id`; `/v1/receipts/ID` has its receipts, for the key that asked.
- Nothing that a caller or an operator says reaches a log. Every error has a code for programs (`gateway.errors`).
"""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import errno
import json
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from quorate.errors import ChainError, ConfigError, SetupError
from quorate.gateway.api_keys import ApiKey, KeyFile
from quorate.gateway.asked import Asked
from quorate.gateway.config import GatewayConfig
from quorate.gateway.errors import ApiError
from quorate.gateway.ledger import Ledger
from quorate.model import RECEIPT_HEADER, ModelClient, NoAnswer, Registry, SignedReceipt, Stream, parse_json
from quorate.model.fields import CHAT, EMBEDDINGS, TASKS
from quorate.model.sse import DONE, data_event, receipt_event

__all__ = ["Gateway"]

_MOST_RECEIPTS = 10_000
_OPERATOR = "X-Quorate-Operator"
_ID = "X-Request-Id"


class Gateway:
    """Answers callers. `bind` takes the port, `close` lets what is in progress end."""

    def __init__(
        self, client: ModelClient, registry: Registry, keys: KeyFile, ledger: Ledger, config: GatewayConfig
    ) -> None:
        self._client = client
        self._registry = registry
        self._keys = keys
        self._ledger = ledger
        self._config = config
        self._in_progress = 0
        self._receipts: OrderedDict[str, tuple[str, tuple[SignedReceipt, ...]]] = OrderedDict()
        self._runner: web.AppRunner | None = None

    async def bind(self) -> int:
        """Listen; returns the port. Raises SetupError where it is taken."""
        config = self._config
        runner = web.AppRunner(
            self.application(), access_log=None, shutdown_timeout=config.drain_s, handler_cancellation=True
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, config.host, config.port).start()
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise SetupError(
                    f"port {config.port} on {config.host} is in use by another program",
                    fix="choose another port in the configuration, or 0 for a free one",
                ) from None
            raise SetupError(f"cannot listen on {config.host}, port {config.port}: {error.strerror}") from error
        self._runner = runner
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        """Take no new requests; let those in progress end, for `drain_s` at most."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def application(self) -> web.Application:
        """The aiohttp application (for tests without a port of our own choosing)."""
        app = web.Application(client_max_size=self._config.request_bytes, middlewares=[_errors_as_json])
        app.router.add_post(CHAT, self._answer)
        app.router.add_post(EMBEDDINGS, self._answer)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/models/{model:.+}", self._show_model)
        app.router.add_get("/v1/receipts/{answer}", self._show_receipts)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "in_progress": self._in_progress})

    async def _list_models(self, request: web.Request) -> web.Response:
        self._key_of(request)
        return web.json_response({"object": "list", "data": await self._models()})

    async def _show_model(self, request: web.Request) -> web.Response:
        self._key_of(request)
        name = request.match_info["model"]
        for row in await self._models():
            if row["id"] == name:
                return web.json_response(row)
        raise ApiError(404, "model_not_found", f"no operator serves the model {name[:80]!r}", param="model")

    async def _models(self) -> list[dict[str, Any]]:
        """Each model of an operator that can be asked, once, with how many serve it."""
        rows: dict[str, dict[str, Any]] = {}
        for operator in await self._registry.operators():
            if operator.stake <= 0 or operator.paused:
                continue
            for model in operator.models:
                row = rows.setdefault(
                    model.name,
                    {"id": model.name, "object": "model", "created": 0, "owned_by": "quorate", "operators": 0},
                )
                row["operators"] += 1
        return [rows[name] for name in sorted(rows)]

    async def _show_receipts(self, request: web.Request) -> web.Response:
        key = self._key_of(request)
        answer = request.match_info["answer"]
        owner, receipts = self._receipts.get(answer, ("", ()))
        if owner != key.name:
            raise ApiError(404, "receipt_not_found", f"no receipt of {answer[:80]!r} is known; the newest are kept")
        rows = [
            {"receipt": one.receipt.as_json(), "signature": "0x" + one.signature.hex(), "header": one.header()}
            for one in receipts
        ]
        return web.json_response({"object": "list", "id": answer, "data": rows})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        key = self._key_of(request)
        self._settle()
        if self._ledger.is_spent(key):
            raise ApiError(429, "budget_spent", f"the key {key.name} has used its {key.most_tokens} tokens")
        if self._in_progress >= self._config.at_once:
            raise ApiError(503, "gateway_busy", f"{self._in_progress} requests are in progress; come again later")
        self._in_progress += 1
        try:
            asked = Asked.of(await request.read(), TASKS[request.path])
            if asked.is_stream:
                return await self._stream(request, key, asked)
            return await self._whole(request.path, key, asked)
        except NoAnswer as error:
            raise ApiError.of(error) from None
        finally:
            self._in_progress -= 1

    async def _whole(self, path: str, key: ApiKey, asked: Asked) -> web.Response:
        answer = _new_id(path)
        body = asked.body
        if path == CHAT:
            body = body | {"max_tokens": asked.max_tokens(self._config.max_tokens)}
            body.pop("max_completion_tokens", None)
        found = await self._client.forward(path, body)
        self._note(key, answer, [found.signed])
        headers = {
            _ID: answer,
            _OPERATOR: found.signed.receipt.operator,
            RECEIPT_HEADER: found.signed.header(),
        }
        said = found.body if asked.encoding == "float" else _in_base64(found.body)
        return web.Response(body=said, content_type="application/json", headers=headers)

    async def _stream(self, request: web.Request, key: ApiKey, asked: Asked) -> web.StreamResponse:
        answer = _new_id(CHAT)
        most = asked.max_tokens(self._config.max_tokens)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", _ID: answer}
        )
        try:
            async with self._client.forward_stream(asked.body, most) as stream:
                try:
                    first = await anext(stream, "")  # who cannot be answered at all gets an error, not a stream
                    await response.prepare(request)
                    await self._tell(_Voice(response, answer, asked, self._config.gap_s), stream, first)
                finally:
                    self._note(key, answer, [one.signed for one in stream.segments])
        except (ConnectionError, TimeoutError):
            _abort(request)  # the caller is gone, or does not read
        return response

    async def _tell(self, voice: _Voice, stream: Stream, first: str) -> None:
        """The answer, a receipt of each operator, the end; an error where nobody could go on with it."""
        try:
            await voice.delta(role="assistant", content=first)
            async for text in stream:
                await voice.delta(content=text)
        except NoAnswer as error:
            await voice.say(ApiError.of(error).as_json())
            return
        await voice.finish(stream)
        for one in stream.segments:
            await voice.write(receipt_event(one.signed))
        await voice.write(data_event(DONE))

    def _key_of(self, request: web.Request) -> ApiKey:
        kind, _, shown = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not shown:
            raise ApiError(401, "no_api_key", "expected the header: Authorization: Bearer KEY")
        key = self._keys.find(shown.strip())
        if key is None:
            raise ApiError(401, "invalid_api_key", "there is no such key")
        return key

    def _note(self, key: ApiKey, answer: str, receipts: Sequence[SignedReceipt]) -> None:
        """The operators are owed for it, whether it can be written down now or not."""
        if not receipts:
            return
        self._receipts[answer] = (key.name, tuple(receipts))
        while len(self._receipts) > _MOST_RECEIPTS:
            self._receipts.popitem(last=False)
        with contextlib.suppress(OSError):  # the next request meets it, and is declined
            self._ledger.add(key, answer, receipts)

    def _settle(self) -> None:
        try:
            self._ledger.flush()
        except OSError as error:
            raise ApiError(503, "ledger_full", f"answers cannot be noted: {error.strerror}") from None


class _Voice:
    """Writes the chunks of one stream, each within `patience_s`: a reader that does not read is left."""

    def __init__(self, response: web.StreamResponse, answer: str, asked: Asked, patience_s: float) -> None:
        self._response = response
        self._asked = asked
        self._patience_s = patience_s
        self._head = {
            "id": answer,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": asked.model,
        }
        if asked.wants_usage:
            self._head["usage"] = None

    async def delta(self, finish: str | None = None, **delta: str) -> None:
        await self.say(self._head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    async def finish(self, stream: Stream) -> None:
        await self.delta(stream.finish)
        if self._asked.wants_usage:
            usage = {
                "prompt_tokens": stream.prompt_tokens,
                "completion_tokens": stream.completion_tokens,
                "total_tokens": stream.prompt_tokens + stream.completion_tokens,
            }
            await self.say(self._head | {"choices": [], "usage": usage})

    async def say(self, body: dict[str, Any]) -> None:
        await self.write(data_event(json.dumps(body, ensure_ascii=False).encode()))

    async def write(self, raw: bytes) -> None:
        async with asyncio.timeout(self._patience_s):
            await self._response.write(raw)


def _new_id(path: str) -> str:
    return ("chatcmpl-" if path == CHAT else "embd-") + secrets.token_hex(12)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _in_base64(body: bytes) -> bytes:
    """The embeddings as little-endian 32-bit floats in base64: what OpenAI's client asks for by itself."""
    answer = parse_json(body, "the embeddings")
    for row in answer["data"]:
        numbers = array.array("f", row["embedding"])
        if sys.byteorder == "big":
            numbers.byteswap()
        row["embedding"] = base64.b64encode(numbers.tobytes()).decode()
    return json.dumps(answer).encode()


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return error.response()
    except ChainError:
        return ApiError(503, "registry_unreachable", "the chain with the registry cannot be asked").response()
    except ConfigError as error:
        return ApiError(503, "keys_unreadable", f"the keys cannot be read: {error.message[:80]}").response()
    except web.HTTPRequestEntityTooLarge:
        return ApiError(413, "request_too_large", "the request is too large").response()
    except web.HTTPException as error:
        code = "unknown_path" if error.status == 404 else "invalid_request"
        return ApiError(error.status, code, f"{request.method} {request.path[:80]!r}: {error.reason}").response()
