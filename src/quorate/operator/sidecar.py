"""Stands in front of an operator's models: checks who asks and what, forwards, and signs a receipt under each answer.

- A request is signed by its client (`quorate.model.ModelRequest`): absent, stale, replayed and foreign ones are refused
  before anything is spent on them. After a restart nothing signed earlier is taken, so no nonce needs to be kept.
- Only fields that we know reach the model server: no chat template, no image to fetch, no engine option from outside.
- Two paths answer with a receipt: /v1/chat/completions and /v1/embeddings. /v1/models and /health are open to all.
- An error is OpenAI's form of one and has no receipt; nobody pays for it, and nothing of it counts.
"""

from __future__ import annotations

import errno
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

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
from quorate.nesting import load_json
from quorate.operator.config import LimitsConfig
from quorate.units import Address, Hash

__all__ = ["Identity", "Sidecar", "Upstream"]

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
_PATHS: Mapping[str, Literal["chat", "embedding"]] = {CHAT: "chat", EMBEDDINGS: "embedding"}
_MOST_NONCES = 100_000
_HEALTH_TIMEOUT_S = 5

_Check = Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


_CHAT_FIELDS: Mapping[str, _Check] = {
    "model": lambda v: isinstance(v, str),
    "messages": lambda v: isinstance(v, list) and 0 < len(v) <= 256 and all(_is_message(one) for one in v),
    "max_tokens": lambda v: type(v) is int and v > 0,
    "max_completion_tokens": lambda v: type(v) is int and v > 0,
    "temperature": lambda v: _is_number(v) and 0 <= v <= 2,
    "top_p": lambda v: _is_number(v) and 0 < v <= 1,
    "seed": lambda v: type(v) is int and 0 <= v < 2**63,
    "stop": lambda v: (
        isinstance(v, str) or (isinstance(v, list) and len(v) <= 8 and all(isinstance(s, str) for s in v))
    ),
    "n": lambda v: v == 1 and type(v) is int,
    "stream": lambda v: v is False,
    "response_format": lambda v: isinstance(v, dict) and v.get("type") in ("text", "json_object", "json_schema"),
    "user": lambda v: isinstance(v, str),
}
_EMBEDDING_FIELDS: Mapping[str, _Check] = {
    "model": lambda v: isinstance(v, str),
    "input": lambda v: (
        isinstance(v, str) or (isinstance(v, list) and all(isinstance(one, str) for one in v) and v != [])
    ),
    "encoding_format": lambda v: v == "float",
    "user": lambda v: isinstance(v, str),
}


def _is_message(value: object) -> bool:
    """Plain text only: a content part could name an image, which the model server would fetch."""
    return (
        isinstance(value, dict)
        and value.keys() <= {"role", "content", "name"}
        and value.get("role") in ("system", "user", "assistant")
        and isinstance(value.get("content"), str)
        and isinstance(value.get("name", ""), str)
    )


@dataclass(frozen=True)
class Upstream:
    """A model and the server that runs it: by a URL, or by a unix socket."""

    model: Model
    task: Literal["chat", "embedding"]
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
    ) -> None:
        """`clients`: who may ask, None = whoever signs. `now` is the clock, for tests."""
        self._identity = identity
        self._limits = limits or LimitsConfig()
        self._clients = None if clients is None else frozenset(clients)
        self._now = now
        self._started = int(now())
        self._nonces: OrderedDict[tuple[Address, Hash], int] = OrderedDict()
        self._upstreams: dict[str, Upstream] = {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._in_progress = 0
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def bind(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen, answering 503 until `serve`; returns the port. Raises SetupError where the port is taken."""
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=2)
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

    async def _answer(self, request: web.Request) -> web.Response:
        """One paid answer: who asks, what, the model's words, the receipt."""
        if self._in_progress >= self._limits.at_once:
            raise _Declined(503, f"{self._in_progress} requests are in progress; come again later")
        self._in_progress += 1
        try:
            who, asked = await self._authorised(request)
            upstream = self._upstream_of(request.path, asked)
            forwarded = _forwarded(asked, upstream.task, self._limits)
            answer = await self._forward(upstream, request.path, forwarded)
            receipt = self._receipt(who, upstream, hash_of(await request.read()), answer)
        finally:
            self._in_progress -= 1
        return web.Response(body=answer, content_type="application/json", headers={RECEIPT_HEADER: receipt.header()})

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
        if upstream.task != _PATHS[path]:
            raise _Declined(400, f"{upstream.model.name} answers {_path_of(upstream.task)}, not {path}")
        return upstream

    async def _forward(self, upstream: Upstream, path: str, body: bytes) -> bytes:
        """The model server's answer, whole; a fault of the client's stays one, any other is ours."""
        name = upstream.model.name
        timeout = aiohttp.ClientTimeout(total=self._limits.timeout_s)
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            async with self._sessions[name].post(
                upstream.url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                answer = await _bounded(response, self._limits.answer_bytes)
                if response.status in (400, 422):
                    raise _Declined(400, f"{name} refused the request: {_message_of(answer)}")
                if response.status != 200:
                    raise _Declined(502, f"{name} failed with HTTP {response.status}")
                return answer
        except TimeoutError:
            raise _Declined(504, f"{name} gave no answer in {self._limits.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise _Declined(502, f"{name} cannot be reached ({type(error).__name__})") from None

    def _receipt(self, who: Authorization, upstream: Upstream, request_hash: Hash, answer: bytes) -> SignedReceipt:
        prompt_tokens, completion_tokens = _usage_of(answer, upstream.model.name)
        receipt = Receipt(
            chain_id=self._identity.chain_id,
            registry=self._identity.registry,
            operator=self._identity.account,
            client=who.client,
            model=upstream.model.name,
            manifest_hash=upstream.model.manifest_hash,
            request_hash=request_hash,
            answer_hash=hash_of(answer),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            issued_at=int(self._now()),
            nonce=who.nonce,
        )
        return SignedReceipt(receipt, self._identity.key.sign_digest(receipt.digest()))


def _forwarded(asked: dict[str, Any], task: Literal["chat", "embedding"], limits: LimitsConfig) -> bytes:
    """The request as the model server gets it; raises _Declined for what is unknown, wrong or too much."""
    if asked.get("stream") not in (None, False):
        raise _Declined(400, "streaming is not served yet: leave stream out")
    known = _CHAT_FIELDS if task == "chat" else _EMBEDDING_FIELDS
    for name, value in asked.items():
        if name not in known:
            raise _Declined(400, f"the field {name[:80]!r} is not taken here; these are: {', '.join(known)}")
        if not known[name](value):
            raise _Declined(400, f"the field {name!r} has a value that is not taken here")
    needed = "messages" if task == "chat" else "input"
    if needed not in asked:
        raise _Declined(400, f"the request has no {needed!r}")
    sent = {name: value for name, value in asked.items() if name != "user"}
    if task == "embedding":
        if isinstance(sent["input"], list) and len(sent["input"]) > limits.inputs:
            raise _Declined(400, f"the request has {len(sent['input'])} texts; at most {limits.inputs} are taken")
    else:
        wanted = sent.pop("max_completion_tokens", None) or sent.get("max_tokens") or limits.max_tokens
        if wanted > limits.max_tokens:
            raise _Declined(400, f"max_tokens is {wanted}; at most {limits.max_tokens} are taken")
        sent["max_tokens"] = wanted
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
    return next(path for path, one in _PATHS.items() if one == task)
