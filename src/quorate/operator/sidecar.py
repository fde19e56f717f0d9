"""Stands in front of an operator's models: checks who asks and what, forwards, and signs a receipt under each answer.

- A request is signed by its client (`quorate.model.ModelRequest`): absent, stale, replayed and foreign ones are refused
  before anything is spent on them. After a restart nothing signed earlier is taken, so no nonce needs to be kept.
- Only fields that we know reach the model server (`quorate.model.fields`).
- Two paths answer with a receipt: /v1/chat/completions, also as a stream, and /v1/embeddings. /v1/models and /health
  are open to all; /v1/receipts/NONCE has the last receipt of a request for whoever knows its nonce.
- An error is OpenAI's form of one and has no receipt; nobody pays for it, and nothing of it counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from quorate.chain import Model, Wallet
from quorate.errors import Malformed, PeerError, QuorateError, SetupError
from quorate.model import (
    AUTH_HEADER,
    RECEIPT_HEADER,
    Authorization,
    ModelRequest,
    Receipt,
    SignedReceipt,
    hash_of,
    parse_json,
)
from quorate.model.fields import CHAT, EMBEDDINGS, TASKS, Task, fault_in
from quorate.model.sse import Tally
from quorate.nesting import load_json
from quorate.operator.config import LimitsConfig
from quorate.operator.relay import Broken, Relay
from quorate.units import Address, Hash

__all__ = ["Identity", "Sidecar", "Upstream"]

_MOST_NONCES = 100_000
_MOST_RECEIPTS = 10_000
_HEALTH_TIMEOUT_S = 5


@dataclass(frozen=True)
class Upstream:
    """A model and the server that runs it: by a URL, or by a unix socket."""

    model: Model
    task: Task
    url: str
    """Without /v1; only its path counts if `socket` is given."""
    socket: Path | None = None


@dataclass(frozen=True)
class Identity:
    """Who answers: the account in the registry, and the key that signs its receipts."""

    chain_id: int
    registry: Address
    account: Address
    key: Wallet


class _Declined(Exception):
    """A request that is answered with an error; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Sidecar:
    """The operator's HTTP server. `bind` takes the port, `serve` names the models once they run."""

    def __init__(
        self,
        identity: Identity,
        *,
        limits: LimitsConfig | None = None,
        clients: Sequence[Address] | None = None,
        now: Callable[[], float] = time.time,
        keep: Callable[[SignedReceipt], None] = lambda receipt: None,
    ) -> None:
        """`clients`: who may ask, None = whoever signs. `now` is the clock, for tests.

        `keep` is given each answer's receipt, a stream's last one, also where the client did not stay for it: what the
        operator wants to be paid by. An answer whose receipt it cannot keep is not given.
        """
        self._identity = identity
        self._limits = limits or LimitsConfig()
        self._clients = None if clients is None else frozenset(clients)
        self._now = now
        self._started = int(now())
        self._nonces: OrderedDict[tuple[Address, Hash], int] = OrderedDict()
        self._upstreams: dict[str, Upstream] = {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._in_progress = 0
        self._keep = keep
        self._unkept: list[SignedReceipt] = []
        self._receipts: OrderedDict[Hash, SignedReceipt] = OrderedDict()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def bind(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen, answering 503 until `serve`; returns the port. Raises SetupError where the port is taken."""
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=2, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise SetupError(
                    f"port {port} on {host} is in use by another program",
                    fix="choose another port in the configuration, or 0 for a free one",
                ) from None
            raise SetupError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
        self._runner = runner
        return int(runner.addresses[0][1])

    def serve(self, upstreams: Sequence[Upstream]) -> None:
        """Answer for these models from now on."""
        for one in upstreams:
            connector = aiohttp.UnixConnector(path=str(one.socket)) if one.socket else aiohttp.TCPConnector()
            self._sessions[one.model.name] = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
            self._upstreams[one.model.name] = one

    async def close(self) -> None:
        """Stop listening and close the connections to the models."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()
        self._upstreams.clear()

    def application(self) -> web.Application:
        """The aiohttp application (for tests without a port of our own choosing)."""
        app = web.Application(client_max_size=self._limits.request_bytes, middlewares=[_errors_as_json])
        app.router.add_post(CHAT, self._answer)
        app.router.add_post(EMBEDDINGS, self._answer)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/receipts/{nonce}", self._show_receipt)
        app.router.add_get("/health", self._health)
        return app

    async def _list_models(self, _: web.Request) -> web.Response:
        rows = [
            {
                "id": name,
                "object": "model",
                "owned_by": self._identity.account,
                "manifest_hash": one.model.manifest_hash,
            }
            for name, one in self._upstreams.items()
        ]
        return web.json_response({"object": "list", "data": rows})

    async def _health(self, _: web.Request) -> web.Response:
        up = {name: await self._is_healthy(one) for name, one in self._upstreams.items()}
        is_well = bool(up) and all(up.values())
        about = {"status": "ok" if is_well else "unavailable", "operator": self._identity.account, "models": up}
        return web.json_response(about, status=200 if is_well else 503)

    async def _is_healthy(self, upstream: Upstream) -> bool:
        timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
        try:
            session = self._sessions[upstream.model.name]
            async with session.get(f"{upstream.url}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _show_receipt(self, request: web.Request) -> web.Response:
        signed = self._receipts.get(Hash(request.match_info["nonce"]))
        if signed is None:
            raise _Declined(404, "no receipt of this nonce is known; the newest are kept until this operator ends")
        return web.json_response(
            {"receipt": signed.receipt.as_json(), "signature": "0x" + signed.signature.hex()},
            headers={RECEIPT_HEADER: signed.header()},
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """One paid answer: who asks, what, the model's words, the receipt."""
        if self._in_progress >= self._limits.at_once:
            raise _Declined(503, f"{self._in_progress} requests are in progress; come again later")
        self._keep_rest()
        self._in_progress += 1
        try:
            who, asked = await self._authorised(request)
            upstream = self._upstream_of(request.path, asked)
            forwarded = _forwarded(asked, upstream.task, self._limits)
            request_hash = hash_of(await request.read())
            if asked.get("stream"):
                return await self._stream(request, upstream, forwarded, who, request_hash)
            answer = await self._forward(upstream, request.path, forwarded)
            counts = _usage_of(answer, upstream.model.name)
            receipt = self._receipt(who, upstream, request_hash, hash_of(answer), *counts)
            self._keep_receipt(receipt)
            return web.Response(
                body=answer, content_type="application/json", headers={RECEIPT_HEADER: receipt.header()}
            )
        finally:
            self._in_progress -= 1

    async def _stream(
        self, request: web.Request, upstream: Upstream, forwarded: bytes, who: Authorization, request_hash: Hash
    ) -> web.StreamResponse:
        """The answer as it is made. A connection that is left before its end is closed: the model's work ends, too."""

        def sign(tally: Tally) -> SignedReceipt:
            return self._receipt(who, upstream, request_hash, tally.hash, tally.prompt_tokens, tally.completion_tokens)

        relay = Relay(sign, self._limits)
        async with self._asking(upstream, CHAT, forwarded, aiohttp.ClientTimeout(total=None)) as model:
            try:
                source = await relay.first(model)
                response = web.StreamResponse(
                    headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
                )
                await response.prepare(request)
                await relay.run(source, response)
            except Broken as error:
                raise _Declined(502, f"{upstream.model.name} failed: {error}") from None
            finally:
                if relay.receipt is not None:
                    self._unkept.append(relay.receipt)
                    with contextlib.suppress(_Declined):  # the next request meets it, and is declined
                        self._keep_rest()
        return response

    async def _authorised(self, request: web.Request) -> tuple[Authorization, dict[str, Any]]:
        """Who asks, and the request's body; a nonce is spent only by a request that is signed."""
        headers = request.headers.getall(AUTH_HEADER, [])
        if len(headers) != 1:
            raise _Declined(401, f"expected one {AUTH_HEADER} header; sign the request (quorate.model.ModelRequest)")
        try:
            who = Authorization.from_header(headers[0])
        except PeerError as error:
            raise _Declined(401, error.message) from None
        self._check_time(who)
        body = await request.read()
        signed = ModelRequest(
            chain_id=self._identity.chain_id,
            registry=self._identity.registry,
            operator=self._identity.account,
            path=request.path,
            body_hash=hash_of(body),
            time=who.time,
            nonce=who.nonce,
        )
        if not who.is_for(signed):
            raise _Declined(401, f"{who.client} has not signed this request to {self._identity.account}")
        if self._clients is not None and who.client not in self._clients:
            raise _Declined(403, f"{who.client} is not among this operator's clients")
        self._spend(who)
        try:
            asked = parse_json(body, "the request")
        except Malformed as error:
            raise _Declined(400, error.message) from None
        if not isinstance(asked, dict):
            raise _Declined(400, "the request is no JSON object")
        return who, asked

    def _check_time(self, who: Authorization) -> None:
        now, skew = self._now(), self._limits.clock_skew_s
        if abs(who.time - now) > skew:
            raise _Declined(
                401, f"the request is dated {who.time}; our clock says {int(now)}, {skew} s apart are taken"
            )
        if who.time < self._started:
            raise _Declined(401, "the request was signed before this operator started; sign it anew")

    def _spend(self, who: Authorization) -> None:
        """Take the nonce, once; forget those whose time is over."""
        now = self._now()
        while self._nonces and next(iter(self._nonces.values())) < now:
            self._nonces.popitem(last=False)
        nonce = (who.client, who.nonce)
        if nonce in self._nonces:
            raise _Declined(401, "the request was answered before: its nonce is used up")
        if len(self._nonces) >= _MOST_NONCES:
            raise _Declined(503, "too many requests in the last minutes; come again later")
        self._nonces[nonce] = int(now) + 2 * self._limits.clock_skew_s + 1

    def _upstream_of(self, path: str, asked: Mapping[str, Any]) -> Upstream:
        if not self._upstreams:
            raise _Declined(503, "the models are loading; come again later")
        upstream = self._upstreams.get(str(asked.get("model")))
        if upstream is None:
            raise _Declined(404, f"there is no model {str(asked.get('model'))[:80]!r}; see /v1/models")
        if upstream.task != TASKS[path]:
            raise _Declined(400, f"{upstream.model.name} answers {_path_of(upstream.task)}, not {path}")
        return upstream

    async def _forward(self, upstream: Upstream, path: str, body: bytes) -> bytes:
        """The model server's answer, whole."""
        async with self._asking(upstream, path, body, aiohttp.ClientTimeout(total=self._limits.timeout_s)) as response:
            return await _bounded(response, self._limits.answer_bytes)

    @contextlib.asynccontextmanager
    async def _asking(
        self, upstream: Upstream, path: str, body: bytes, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The model server's response of status 200; a fault of the client's stays one, any other is ours."""
        name, limits = upstream.model.name, self._limits
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            async with asyncio.timeout(limits.timeout_s) as opening:
                response = await self._sessions[name].post(
                    upstream.url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
                )
                opening.reschedule(None)
            async with response:
                if response.status in (400, 422):
                    words = _message_of(await _bounded(response, limits.answer_bytes))
                    raise _Declined(400, f"{name} refused the request: {words}")
                if response.status != 200:
                    raise _Declined(502, f"{name} failed with HTTP {response.status}")
                yield response
        except TimeoutError:
            raise _Declined(504, f"{name} gave no answer in {limits.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise _Declined(502, f"{name} cannot be reached ({type(error).__name__})") from None

    def _receipt(
        self,
        who: Authorization,
        upstream: Upstream,
        request_hash: Hash,
        answer_hash: Hash,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> SignedReceipt:
        receipt = Receipt(
            chain_id=self._identity.chain_id,
            registry=self._identity.registry,
            operator=self._identity.account,
            client=who.client,
            model=upstream.model.name,
            manifest_hash=upstream.model.manifest_hash,
            request_hash=request_hash,
            answer_hash=answer_hash,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            issued_at=int(self._now()),
            nonce=who.nonce,
        )
        return SignedReceipt(receipt, self._identity.key.sign_digest(receipt.digest()))

    def _keep_receipt(self, signed: SignedReceipt) -> None:
        """Raises _Declined where it cannot be kept: no answer leaves that nobody would be paid for."""
        try:
            self._keep(signed)
        except OSError as error:
            raise _Declined(503, f"receipts cannot be kept ({error.strerror}); come again later") from None
        self._receipts[signed.receipt.nonce] = signed
        while len(self._receipts) > _MOST_RECEIPTS:
            self._receipts.popitem(last=False)

    def _keep_rest(self) -> None:
        """The receipts of streams that could not be kept when they ended; until they are, nothing new is answered."""
        while self._unkept:
            self._keep_receipt(self._unkept[0])
            del self._unkept[0]


def _forwarded(asked: dict[str, Any], task: Task, limits: LimitsConfig) -> bytes:
    """The request as the model server gets it; raises _Declined for what is unknown, wrong or too much."""
    if fault := fault_in(asked, task):
        raise _Declined(400, fault.message)
    sent = {name: value for name, value in asked.items() if name != "user"}
    if task == "embedding":
        if isinstance(sent["input"], list) and len(sent["input"]) > limits.inputs:
            raise _Declined(400, f"the request has {len(sent['input'])} texts; at most {limits.inputs} are taken")
    else:
        wanted = sent.pop("max_completion_tokens", None) or sent.get("max_tokens") or limits.max_tokens
        if wanted > limits.max_tokens:
            raise _Declined(400, f"max_tokens is {wanted}; at most {limits.max_tokens} are taken")
        sent["max_tokens"] = wanted
    if sent.get("stream"):
        sent["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return json.dumps(sent, ensure_ascii=False).encode()


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every error in OpenAI's form."""
    try:
        return await handler(request)
    except _Declined as error:
        return _error(error.status, error.message)
    except web.HTTPRequestEntityTooLarge:
        return _error(413, "the request is too large")
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path[:80]}: {error.reason}")


def _error(status: int, message: str) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > most:
            response.close()
            raise _Declined(502, f"the model's answer is longer than {most} bytes")
    return bytes(body)


def _usage_of(answer: bytes, model: str) -> tuple[int, int]:
    try:
        usage = parse_json(answer, "the model's answer")["usage"]
        return int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
    except (QuorateError, KeyError, TypeError, ValueError, AttributeError):
        raise _Declined(502, f"{model} gave an answer without its usage") from None


def _message_of(answer: bytes) -> str:
    try:
        message = load_json(answer)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.decode(errors="replace")
    return str(message)[:300]


def _path_of(task: str) -> str:
    return next(path for path, one in TASKS.items() if one == task)
