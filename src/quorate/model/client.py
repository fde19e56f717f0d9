"""Asks staked operators, and counts an answer only if somebody with a stake has signed for it.

- Operators come from the registry: listed (their stake reaches the minimum), not paused, serving the model by name.
  Their order is drawn anew for each question from the client's address and a random nonce: load spreads, and none can
  move up.
- An answer counts if its receipt is signed by the operator's *registered* key and names this operator, client,
  request, answer, nonce, model and registered manifest hash, and if the answer holds its schema. Otherwise the reason
  is kept and the next operator is asked; when all have failed, `NoAnswer` holds each reason.
- What the receipt does not prove is that the model was really run (evaluations and audits are for that), so a caller
  weighs words by what the model was measured to be worth.
- Everything that comes back is hostile: bounded in size and time, no redirect is followed, nothing is decompressed.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, overload
from urllib.parse import urlsplit

import aiohttp

from quorate.chain import Operator, Wallet
from quorate.errors import ConfigError, Malformed, ModelError, NoOperator, Refused, TimedOut
from quorate.model.receipt import RECEIPT_HEADER, Receipt, SignedReceipt, hash_of
from quorate.model.request import AUTH_HEADER, Authorization, ModelRequest, RequestSigner, WalletSigner
from quorate.model.schema import Schema, parse_json
from quorate.signatures import keccak
from quorate.units import Address, Hash

__all__ = ["Answer", "Attempt", "Embedding", "HasChainId", "Limits", "ModelClient", "NoAnswer", "Registry"]

T = TypeVar("T")
Message = Mapping[str, Any]
"""One message of a chat as the OpenAI API has it: `role` and `content`."""

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
EMBEDDINGS: Literal["/v1/embeddings"] = "/v1/embeddings"
_SHOWN = 160  # characters of an operator's own words in a reason
_WARMER = 0.7  # a greedy model repeats a broken answer for ever: from the second try on, it samples


class HasChainId(Protocol):
    """A chain, as far as a receipt needs it."""

    @property
    def chain_id(self) -> int:
        """As EIP-155 numbers it."""
        ...


class Registry(Protocol):
    """Who serves models: `quorate.chain.OperatorRegistry`, or a script in unit tests."""

    @property
    def chain(self) -> HasChainId:
        """Where the registry is."""
        ...

    @property
    def address(self) -> Address:
        """The registry's contract."""
        ...

    async def operators(self) -> Sequence[Operator]:
        """The listed operators, paused ones too."""
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long and how much a client puts up with."""

    timeout_s: float = 60
    """For one answer of one operator, all included."""
    connect_timeout_s: float = 5
    most_answer_bytes: int = 4 * 1024 * 1024
    passes: int = 2
    """How often an operator is asked whose model broke the schema."""
    clock_skew_s: int = 120

    def __post_init__(self) -> None:
        if not (self.timeout_s > 0 and self.connect_timeout_s > 0 and self.most_answer_bytes > 0 and self.passes > 0):
            raise ConfigError(f"{self}: every limit must be above 0")


@dataclass(frozen=True)
class Attempt:
    """An operator that was asked, or passed over, and why nothing of it counted."""

    operator: Address
    error: ModelError

    @property
    def reason(self) -> str:
        """What was wrong, in one sentence."""
        return self.error.message


class NoAnswer(NoOperator):
    """No operator gave an answer that counts; `attempts` has each one's reason."""

    def __init__(self, model: str, attempts: Sequence[Attempt]) -> None:
        self.model = model
        self.attempts = tuple(attempts)
        reasons = "; ".join(f"{one.operator}: {one.reason}" for one in attempts)
        message = f"no operator gave an answer of {model!r} that counts ({reasons})"
        super().__init__(
            message if attempts else f"no operator in the registry serves the model {model!r}",
            fix="start an operator that serves it and has its stake in the registry" if not attempts else "",
        )


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A model's words that count, and who signed for them."""

    text: str
    value: T
    """The parsed answer where a schema was asked for, else None."""
    receipt: Receipt
    signature: bytes
    attempts: tuple[Attempt, ...]
    """The operators before this one, with reasons."""
    seconds: float

    @property
    def operator(self) -> Address:
        """Who answered, and is liable for it."""
        return self.receipt.operator

    @property
    def model(self) -> str:
        """What answered, by the name in the registry."""
        return self.receipt.model


@dataclass(frozen=True)
class Embedding:
    """One vector a text, in order, and who signed for them."""

    vectors: tuple[tuple[float, ...], ...]
    receipt: Receipt
    signature: bytes
    attempts: tuple[Attempt, ...]
    seconds: float

    @property
    def operator(self) -> Address:
        """Who answered, and is liable for it."""
        return self.receipt.operator

    @property
    def model(self) -> str:
        """What answered, by the name in the registry."""
        return self.receipt.model


@dataclass(frozen=True)
class _Found(Generic[T]):
    content: T
    signed: SignedReceipt
    attempts: tuple[Attempt, ...]
    seconds: float


class ModelClient:
    """Calls of models on staked operators, for one client. Use it in one event loop and close it there."""

    def __init__(
        self,
        registry: Registry,
        signer: RequestSigner | Wallet,
        *,
        model: str | None = None,
        limits: Limits | None = None,
        now: Callable[[], float] = time.time,
        token: Callable[[], bytes] = lambda: secrets.token_bytes(32),
        asking: Callable[[Address, str], None] = lambda operator, model: None,
    ) -> None:
        """`model` is what `ask` uses. `now` and `token` are the clock and the source of nonces, for tests.

        `asking` is told which operator is about to be asked for which model: whoever watches can say whom we wait for.
        """
        self._registry = registry
        self._signer: RequestSigner = WalletSigner(signer) if isinstance(signer, Wallet) else signer
        self._model = model
        self._limits = limits or Limits()
        self._now = now
        self._token = token
        self._asking = asking
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @overload
    async def chat(
        self,
        messages: Sequence[Message],
        schema: type[T] | Schema[T],
        *,
        model: str,
        max_tokens: int = ...,
        temperature: float = ...,
        seed: int = ...,
        stop: Sequence[str] = ...,
    ) -> Answer[T]: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Message],
        schema: Mapping[str, Any] | None = None,
        *,
        model: str,
        max_tokens: int = ...,
        temperature: float = ...,
        seed: int = ...,
        stop: Sequence[str] = ...,
    ) -> Answer[Any]: ...

    async def chat(
        self,
        messages: Sequence[Message],
        schema: Any = None,
        *,
        model: str,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Answer[Any]:
        """The next message of a chat; with a `schema` (dataclass, pydantic model or JSON schema), JSON that holds it.

        An answer that breaks the schema is asked for again, from the other operators first, at most `Limits.passes`
        times of each, with another seed. Raises NoAnswer.
        """
        form: Schema[Any] | None = None if schema is None else Schema.of(schema)

        def body(turn: int) -> dict[str, Any]:
            asked: dict[str, Any] = {
                "model": model,
                "messages": list(messages),
                "max_tokens": max_tokens,
                "temperature": temperature if turn == 0 else max(temperature, _WARMER),
                "seed": seed + turn,
            }
            if stop:
                asked["stop"] = list(stop)
            return asked if form is None else asked | {"response_format": form.response_format()}

        def read(raw: Any) -> tuple[str, Any]:
            text = _text_of(raw, complete=form is not None)
            return text, None if form is None else form.parse(text)

        found = await self._find(CHAT, model, body, read)
        text, value = found.content
        return Answer(text, value, *found.signed, found.attempts, found.seconds)

    @overload
    async def ask(self, prompt: str, schema: type[T], *, model: str | None = None, max_tokens: int = ...) -> T: ...

    @overload
    async def ask(
        self, prompt: str, schema: Mapping[str, Any], *, model: str | None = None, max_tokens: int = ...
    ) -> Any: ...

    async def ask(self, prompt: str, schema: Any, *, model: str | None = None, max_tokens: int = 256) -> Any:
        """The parsed answer to one prompt; `chat` returns the receipt, too."""
        chosen = model or self._model
        if chosen is None:
            raise ConfigError("no model is named", fix="give model=..., here or to ModelClient")
        answer = await self.chat([{"role": "user", "content": prompt}], schema, model=chosen, max_tokens=max_tokens)
        return answer.value

    async def embed(self, texts: Sequence[str], model: str) -> Embedding:
        """One vector for each text, in order; raises NoAnswer."""
        if not texts:
            raise ConfigError("there is no text to embed")
        asked = {"model": model, "input": list(texts), "encoding_format": "float"}
        found = await self._find(EMBEDDINGS, model, lambda _: asked, lambda raw: _vectors_of(raw, len(texts)))
        return Embedding(found.content, *found.signed, found.attempts, found.seconds)

    async def _find(
        self, path: str, model: str, body: Callable[[int], dict[str, Any]], read: Callable[[Any], T]
    ) -> _Found[T]:
        """The first content that counts; `body(turn)` is what is asked in the turn, `read` raises Malformed."""
        candidates, attempts = _candidates(await self._registry.operators(), model)
        draw = self._token()
        candidates.sort(key=lambda one: keccak(_word(self._signer.address) + draw + _word(one.account)))
        for turn in range(self._limits.passes):
            question = json.dumps(body(turn), ensure_ascii=False, separators=(",", ":")).encode()
            again: list[Operator] = []
            for operator in candidates:
                try:
                    signed, answer, seconds = await self._ask(operator, path, model, question)
                except ModelError as error:
                    attempts.append(Attempt(operator.account, error))
                    continue
                try:
                    content = read(parse_json(answer, "the response"))
                except Malformed as error:
                    attempts.append(Attempt(operator.account, error))
                    again.append(operator)
                    continue
                return _Found(content, signed, tuple(attempts), seconds)
            candidates = again
        raise NoAnswer(model, attempts)

    async def _ask(
        self, operator: Operator, path: str, model: str, question: bytes
    ) -> tuple[SignedReceipt, bytes, float]:
        """One operator's answer with a receipt that holds; raises Refused, TimedOut or Malformed."""
        url = _url_of(operator.endpoint, path)
        request = ModelRequest(
            chain_id=self._registry.chain.chain_id,
            registry=self._registry.address,
            operator=operator.account,
            path=path,
            body_hash=hash_of(question),
            time=int(self._now()),
            nonce=Hash("0x" + self._token().hex()),
        )
        signature = await self._signer.sign_request(request)
        who = Authorization(self._signer.address, request.time, request.nonce, signature)
        self._asking(operator.account, model)
        began = time.monotonic()
        header, answer = await self._post(url, question, {AUTH_HEADER: who.header()})
        signed = SignedReceipt.from_header(header)
        self._check(signed, operator, model, request, answer)
        return signed, answer, time.monotonic() - began

    async def _post(self, url: str, question: bytes, headers: dict[str, str]) -> tuple[str, bytes]:
        """The receipt's header and the body of a 200 answer."""
        limits = self._limits
        try:
            async with (
                asyncio.timeout(limits.timeout_s),
                self._http().post(
                    url,
                    data=question,
                    headers=headers | {"Content-Type": "application/json", "Accept-Encoding": "identity"},
                    allow_redirects=False,
                ) as response,
            ):
                body = await _bounded(response, limits.most_answer_bytes)
                if 300 <= response.status < 400:
                    raise Refused("it redirects elsewhere, which is never followed")
                if response.status != 200:
                    raise Refused(f"it answered HTTP {response.status}: {_words_of(body)}")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise Malformed("its answer is compressed, which was not asked for")
                header = response.headers.getall(RECEIPT_HEADER, [])
                if len(header) != 1:
                    raise Malformed(f"its answer has {len(header)} receipts; expected one")
                return header[0], body
        except TimeoutError:
            raise TimedOut(f"it gave no whole answer in {limits.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise Refused(f"it cannot be reached: {str(error) or type(error).__name__}") from None

    def _check(
        self, signed: SignedReceipt, operator: Operator, model: str, request: ModelRequest, answer: bytes
    ) -> None:
        """Raises Malformed for the first thing about the receipt that does not hold."""
        receipt = signed.receipt
        served = operator.model(model)
        if served is None:
            raise AssertionError(f"{operator.account} was asked for {model}, which it does not serve")
        expected: dict[str, object] = {
            "chain_id": request.chain_id,
            "registry": request.registry,
            "operator": operator.account,
            "client": self._signer.address,
            "model": model,
            "manifest_hash": served.manifest_hash,
            "request_hash": request.body_hash,
            "answer_hash": hash_of(answer),
            "nonce": request.nonce,
        }
        for name, value in expected.items():
            if (found := getattr(receipt, name)) != value:
                raise Malformed(f"its receipt has {name} {found!r}; expected {value!r}")
        if abs(receipt.issued_at - self._now()) > self._limits.clock_skew_s:
            raise Malformed(f"its receipt is dated {receipt.issued_at}; our clock says {int(self._now())}")
        signer = signed.signer
        if signer != operator.key:
            raise Malformed(f"its receipt is signed by {signer or 'nobody'}; its registered key is {operator.key}")
        counted = _usage_of(parse_json(answer, "the response"))
        if counted != (receipt.prompt_tokens, receipt.completion_tokens):
            raise Malformed(f"its receipt counts other tokens than its answer, which says {counted}")

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_timeout_s)
            self._session = aiohttp.ClientSession(
                timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
        return self._session


def _candidates(operators: Sequence[Operator], model: str) -> tuple[list[Operator], list[Attempt]]:
    """The operators to ask for `model`, and those that serve it but are passed over."""
    serving = [one for one in operators if one.model(model) is not None]
    passed = [Attempt(one.account, Refused(reason)) for one in serving if (reason := _not_active(one))]
    return [one for one in serving if not _not_active(one)], passed


def _not_active(operator: Operator) -> str | None:
    if operator.stake <= 0:
        return "it has no stake"
    return "it is paused" if operator.paused else None


def _url_of(endpoint: str, path: str) -> str:
    """Where an operator is asked; its endpoint is its own text, so only a plain HTTP address is taken."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise Refused(f"its endpoint {endpoint[:_SHOWN]!r} is no address") from None
    plain = parts.scheme in ("http", "https") and parts.hostname and not (parts.username or parts.password)
    if not plain or parts.query or parts.fragment or port == 0:
        raise Refused(f"its endpoint {endpoint[:_SHOWN]!r} is no plain http or https address")
    return endpoint.rstrip("/") + path


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > most:
            response.close()
            raise Malformed(f"its answer is longer than {most} bytes")
    return bytes(body)


def _words_of(body: bytes) -> str:
    """What an error answer says, cut short: hostile text, shown with escapes."""
    try:
        message = parse_json(body, "the error")["error"]["message"]
    except (Malformed, KeyError, TypeError):
        message = body.decode(errors="replace")
    return repr(str(message)[:_SHOWN])


def _text_of(raw: Any, *, complete: bool) -> str:
    """The first choice's words; `complete` refuses an answer that ran into max_tokens."""
    try:
        choice = raw["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        raise Malformed("the response has no choice with a message") from None
    if not isinstance(text, str):
        raise Malformed("the response's message has no text")
    if complete and finish != "stop":
        raise Malformed(
            f"the answer breaks its schema: it was cut short ({str(finish)[:20]}) after {len(text)} characters"
        )
    return text


def _vectors_of(raw: Any, count: int) -> tuple[tuple[float, ...], ...]:
    try:
        rows = sorted(raw["data"], key=lambda row: row["index"])
        places = [row["index"] for row in rows]
        vectors = tuple(tuple(float(x) for x in row["embedding"]) for row in rows)
    except (KeyError, OverflowError, TypeError, ValueError):
        raise Malformed("the response has no list of embeddings") from None
    if places != list(range(count)):
        raise Malformed(f"the response has {len(places)} embeddings; expected one for each of {count} texts")
    if not vectors[0] or len({len(vector) for vector in vectors}) != 1:
        raise Malformed("the embeddings differ in length, or are empty")
    if not all(math.isfinite(x) for vector in vectors for x in vector):
        raise Malformed("an embedding holds a number that is not finite")
    return vectors


def _usage_of(raw: Any) -> tuple[int, int]:
    """Prompt and completion tokens as the answer states them."""
    try:
        usage = raw["usage"]
        return int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Malformed("the response does not state its usage") from None


def _word(address: Address) -> bytes:
    return bytes.fromhex(address[2:])
