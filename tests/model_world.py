"""What the tests of models and operators share: a scripted model server, operators in front of it, and a registry.

The sidecar and the client are the real ones, over real HTTP on loopback; only the model's words are scripted. `liar` is
an operator that makes a right answer with a right receipt and then changes what a test says.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from quorate.chain import Model, Operator, Wallet
from quorate.model import (
    AUTH_HEADER,
    RECEIPT_HEADER,
    Authorization,
    Limits,
    ModelClient,
    Receipt,
    SignedReceipt,
    hash_of,
)
from quorate.operator import Identity, LimitsConfig, Sidecar, Upstream
from quorate.signatures import keccak
from quorate.units import Address, Hash, Wei

CHAIN_ID = 31337
REGISTRY = Wallet.from_key(bytes([9]) * 32).address  # any address will do
TALKER = Model("talker", Hash("0x" + "aa" * 32))
EMBEDDER = Model("embedder", Hash("0x" + "bb" * 32))
CLIENT = Wallet.from_key(bytes([7]) * 32)
STAKE = Wei(10**20)
FORM = {
    "title": "summary",
    "type": "object",
    "properties": {
        "kind": {"enum": ["payment", "other"]},
        "summary": {"type": "string", "minLength": 1, "maxLength": 40},
    },
    "required": ["kind", "summary"],
    "additionalProperties": False,
}
GOOD = json.dumps({"kind": "payment", "summary": "Pays 10 tokens."})
BLANK_BEFORE = r"\s*\w+|\s*[^\w\s]|\s+"
BLANK_AFTER = r"\w+ ?|\s+|[^\w\s]"
HELLO = [{"role": "user", "content": "Hello"}]


def wallet(number: int) -> Wallet:
    return Wallet.from_key(bytes([number]) * 32)


Tell = Callable[[int], bytes | None]


@dataclass
class ScriptedModel:
    """A model server that says `words` one after another, the last one for ever."""

    words: list[str] = field(default_factory=lambda: [GOOD])
    finish: str = "stop"
    status: int = 200
    refusal: bytes = b'{"error": {"message": "the model said no"}}'
    """What it says with any other status."""
    delay_s: float = 0
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 12, "completion_tokens": 7})
    asked: list[dict[str, Any]] = field(default_factory=list)
    story: str = ""
    """What a stream tells, a token a word, a blank or a mark; from where a message that is to be continued ends."""
    tell: Tell = lambda told: None
    """Called before each token of a stream and its finish; what it returns is sent, and the stream broken off."""
    pattern: str = BLANK_BEFORE
    """Its tokens: with the blank before a word, as most models have them."""
    gap_s: float = 0
    cut: int = 0
    """Streams that ended because nobody read them any more."""

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.status)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = await self._note(request)
        if asked.get("stream"):
            return await self._tell(request, asked)
        text = self.words[min(len(self.asked), len(self.words)) - 1]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": self.finish}
        return self._answer({"model": asked["model"], "choices": [choice]})

    async def _tell(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        """As vLLM streams: a role, tokens, a finish, the usage, the end."""
        if self.status != 200:
            return self._answer({})
        assert asked["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        told = ""
        if asked.get("continue_final_message"):
            told = asked["messages"][-1]["content"]
            assert asked["add_generation_prompt"] is False
            assert asked["messages"][-1]["role"] == "assistant"
            assert told == told.strip(), "a chat template would cut this"
            assert self.story.startswith(told), f"{told!r} is not how the story begins"
        tokens = tokens_of(self.story[len(told) :], self.pattern)
        finish = "length" if len(tokens) > asked["max_tokens"] else "stop"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def say(count: int, *choices: dict[str, Any]) -> None:
            usage = {"prompt_tokens": 12, "completion_tokens": count, "total_tokens": 12 + count}
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}
            body = json.dumps(chunk | {"choices": choices, "usage": usage})
            await response.write(f"data: {body}\n\n".encode())

        def choice(finish: str | None = None, **delta: str) -> dict[str, Any]:
            return {"index": 0, "delta": delta, "finish_reason": finish}

        try:
            await say(0, choice(role="assistant", content=""))
            said = tokens[: asked["max_tokens"]]
            for count, token in enumerate([*said, ""], 1):
                if (broken := self.tell(count)) is not None:
                    await response.write(broken)
                    if request.transport is not None:
                        request.transport.close()
                    return response
                await asyncio.sleep(self.gap_s)
                if token:
                    await say(count, choice(content=token))
            await say(len(said), choice(finish, content=""))
            await say(len(said))
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.cut += 1
            raise
        return response

    async def _embed(self, request: web.Request) -> web.Response:
        asked = await self._note(request)
        rows = [{"index": i, "embedding": [float(i), 0.5, -0.25]} for i in range(len(asked["input"]))]
        return self._answer({"model": asked["model"], "data": rows})

    async def _note(self, request: web.Request) -> dict[str, Any]:
        asked: dict[str, Any] = await request.json()
        self.asked.append(asked)
        await asyncio.sleep(self.delay_s)
        return asked

    def _answer(self, body: dict[str, Any]) -> web.Response:
        if self.status != 200:
            return web.Response(body=self.refusal, content_type="application/json", status=self.status)
        return web.json_response(body if self.usage is None else body | {"usage": self.usage})


@dataclass
class Exchange:
    """One answer of a liar on its way out; a test's `lie` changes it."""

    receipt: Receipt
    key: Wallet
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    signed: SignedReceipt | None = None

    def says(self, **changes: Any) -> Exchange:
        """The same with other fields in the receipt."""
        return replace(self, receipt=replace(self.receipt, **changes))


Lie = Callable[[Exchange], Exchange]


def tokens_of(text: str, pattern: str = BLANK_BEFORE) -> list[str]:
    """The text in the pieces in which a `ScriptedModel` streams it."""
    return re.findall(pattern, text)


@dataclass
class Liar:
    """An operator that would answer rightly, but for its lie."""

    account: Address
    key: Wallet
    lie: Lie
    body: bytes = field(default_factory=lambda: chat_body(GOOD))
    delay_s: float = 0
    count: int = 0

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/embeddings", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        self.count += 1
        await asyncio.sleep(self.delay_s)
        asked = await request.read()
        who = Authorization.from_header(request.headers[AUTH_HEADER])
        model = TALKER if request.path.endswith("completions") else EMBEDDER
        honest = Receipt(
            chain_id=CHAIN_ID,
            registry=REGISTRY,
            operator=self.account,
            client=who.client,
            model=model.name,
            manifest_hash=model.manifest_hash,
            request_hash=hash_of(asked),
            answer_hash=hash_of(self.body),
            prompt_tokens=12,
            completion_tokens=7,
            issued_at=int(time.time()),
            nonce=who.nonce,
        )
        said = self.lie(Exchange(honest, self.key, self.body))
        signed = said.signed or SignedReceipt(said.receipt, said.key.sign_digest(said.receipt.digest()))
        headers = {RECEIPT_HEADER: signed.header()} | said.headers
        return web.Response(status=said.status, body=said.body, headers=headers)


def chat_body(text: str, **changes: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body: dict[str, Any] = {"choices": [choice], "usage": {"prompt_tokens": 12, "completion_tokens": 7}}
    return json.dumps(body | changes).encode()


def listed(number: int, endpoint: str, *, key: Address | None = None, **changes: Any) -> Operator:
    """What the registry says of an operator."""
    account = wallet(number).address
    served = changes.pop("models", (TALKER, EMBEDDER))
    found = Operator(account, key or account, endpoint, served, STAKE, Wei(0), 0, False)
    return replace(found, **changes)


@dataclass
class ScriptedRegistry:
    """A registry that lists what a test says."""

    listed: list[Operator] = field(default_factory=list)
    address: Address = REGISTRY

    @property
    def chain(self) -> ScriptedRegistry:
        return self

    @property
    def chain_id(self) -> int:
        return CHAIN_ID

    async def operators(self) -> Sequence[Operator]:
        return tuple(self.listed)


@dataclass
class World:
    """Operators and a client that asks them in the order in which they were added."""

    registry: ScriptedRegistry
    stack: AsyncExitStack
    _servers: dict[Address, BaseTestServer] = field(default_factory=dict)
    kept: list[SignedReceipt] = field(default_factory=list)
    """What the honest operators' sidecars kept to be paid by, in order."""

    async def honest(
        self, model: ScriptedModel | None = None, limits: LimitsConfig | None = None, **changes: Any
    ) -> Operator:
        """An operator with the real sidecar in front of a scripted model."""
        number = self._next()
        upstream = await self._start((model or ScriptedModel()).application())
        sidecar = sidecar_of(number, upstream, limits=limits, keep=self.kept.append)
        self.stack.push_async_callback(sidecar.close)
        found = listed(number, await self._start(sidecar.application()), **changes)
        self._servers[found.account] = self._last
        return self._add(found)

    async def kill(self, operator: Operator) -> None:
        """End an honest operator at once, in the middle of whatever it says."""
        server = self._servers[operator.account]
        for connection in list(server.handler.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await server.close()

    async def liar(self, lie: Lie, *, delay_s: float = 0, body: bytes | None = None, **changes: Any) -> Liar:
        """An operator that answers rightly but for `lie`."""
        number = self._next()
        liar = Liar(wallet(number).address, wallet(number), lie, body or chat_body(GOOD), delay_s)
        self._add(listed(number, await self._start(liar.application()), **changes))
        return liar

    def client(self, draw: bytes | None = None, **limits: Any) -> ModelClient:
        """A client; with `draw`, every random token of it is that one."""
        token = (lambda: secrets.token_bytes(32)) if draw is None else (lambda: draw)
        client = ModelClient(self.registry, CLIENT, limits=Limits(**{"timeout_s": 5} | limits), token=token)
        self.stack.push_async_callback(client.close)
        return client

    async def client_that_asks_first(self, first: Address, **limits: Any) -> ModelClient:
        """A client, good for one question, whose nonce puts `first` in front; found by trying."""
        accounts = [one.account for one in self.registry.listed]
        draws = (seed.to_bytes(32, "big") for seed in range(10_000))
        return self.client(next(draw for draw in draws if order_of(accounts, draw)[0] == first), **limits)

    def add(self, operator: Operator) -> Operator:
        """An operator that no process stands behind."""
        return self._add(operator)

    def _next(self) -> int:
        return 20 + len(self.registry.listed)

    def _add(self, operator: Operator) -> Operator:
        self.registry.listed.append(operator)
        return operator

    async def _start(self, app: web.Application) -> str:
        self._last = server = await self.stack.enter_async_context(TestServer(app))
        return str(server.make_url("")).rstrip("/")


def order_of(accounts: Sequence[Address], draw: bytes) -> list[Address]:
    """The order in which a question with this nonce asks, by the rule in the client's documentation."""
    return sorted(accounts, key=lambda one: keccak(bytes.fromhex(CLIENT.address[2:]) + draw + bytes.fromhex(one[2:])))


def sidecar_of(
    number: int,
    upstream: str,
    *,
    limits: LimitsConfig | None = None,
    clients: Sequence[Address] | None = None,
    now: Callable[[], float] = time.time,
    keep: Callable[[SignedReceipt], None] = lambda receipt: None,
) -> Sidecar:
    identity = Identity(CHAIN_ID, REGISTRY, wallet(number).address, wallet(number))
    sidecar = Sidecar(identity, limits=limits, clients=clients, now=now, keep=keep)
    sidecar.serve([Upstream(TALKER, "chat", upstream), Upstream(EMBEDDER, "embedding", upstream)])
    return sidecar


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(ScriptedRegistry(), stack)
