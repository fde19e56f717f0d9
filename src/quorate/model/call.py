"""One question to one operator: signed on the way there, its receipt checked on the way back.

What comes back is hostile: bounded in size and time, no redirect is followed, nothing is decompressed. Of a stream only
text that a receipt covers is let through, so that somebody is liable for every word.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohttp

from quorate.chain import Operator
from quorate.errors import ConfigError, Malformed, ModelError, NoOperator, Refused, TimedOut
from quorate.model.fields import CHAT
from quorate.model.receipt import RECEIPT_HEADER, SignedReceipt, hash_of
from quorate.model.request import AUTH_HEADER, Authorization, ModelRequest, RequestSigner
from quorate.model.schema import parse_json
from quorate.model.sse import DONE, Event, Tally, events, receipt_in
from quorate.units import Address, Hash

__all__ = [
    "Attempt",
    "Caller",
    "Declined",
    "Delivered",
    "HasChainId",
    "Limits",
    "NoAnswer",
    "Payer",
    "Registry",
    "Watch",
]

_SHOWN = 160  # characters of an operator's own words in a reason
_DRAIN_S = 0.5
_FOREIGN_TOKENS = 2048  # of a chat template's own words, beside the request's


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
    """For one answer of one operator, all included; of a stream, the time that is spent waiting for it."""
    connect_timeout_s: float = 5
    gap_s: float = 20
    """Longest silence in a stream."""
    most_answer_bytes: int = 4 * 1024 * 1024
    passes: int = 2
    """How often an operator is asked whose model broke the schema, or whose stream broke off."""
    refusals: int | None = None
    """After as many operators have found fault with the request itself (HTTP 400, 413, 422), it is taken to be at
    fault, and nobody else is asked; None: all are asked, for up to a third may lie.
    """
    clock_skew_s: int = 120

    def __post_init__(self) -> None:
        above = (self.timeout_s, self.connect_timeout_s, self.gap_s, self.most_answer_bytes, self.passes)
        if not all(one > 0 for one in above) or (self.refusals is not None and self.refusals < 1):
            raise ConfigError(f"{self}: every limit must be above 0")


class Declined(Refused):
    """The operator answered with an error; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def blames_request(self) -> bool:
        """Whether it found fault with what was asked: that says nothing against the operator."""
        return self.status in (400, 413, 422)

    @property
    def is_busy(self) -> bool:
        """Whether it only asks to come again."""
        return self.status in (429, 503)


@dataclass(frozen=True)
class Attempt:
    """An operator that was asked, or passed over, and why nothing of it counted."""

    operator: Address
    error: ModelError
    was_asked: bool = True

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


class Watch(Protocol):
    """Whoever wants to know how operators do; see `quorate.model.routing`."""

    def began(self, operator: Operator) -> None:
        """A question is on its way to it."""
        ...

    def ended(self, operator: Operator, error: ModelError | None, waited_s: float, tokens: int) -> None:
        """It is answered, or not, after `waited_s` of waiting for it: a stream's reader's own time is not its."""
        ...


class Payer(Protocol):
    """Pays operators behind a client's questions."""

    def headers(self, operator: Address) -> Mapping[str, str]:
        """What goes with the next question to this operator: the voucher for what it is owed."""
        ...

    def owe(self, signed: SignedReceipt) -> None:
        """Something that counts was delivered. Of a stream's receipts, which have one nonce, the last counts."""
        ...


class Delivered(NamedTuple):
    """Text of a stream that a receipt covers, the receipt, and why the answer ended if it did."""

    text: str
    signed: SignedReceipt
    finish: str | None


class _Question(NamedTuple):
    url: str
    body: bytes
    request: ModelRequest
    headers: dict[str, str]


class Caller:
    """Asks operators for one client. Use it in one event loop and close it there."""

    def __init__(
        self,
        registry: Registry,
        signer: RequestSigner,
        limits: Limits,
        *,
        now: Callable[[], float] = time.time,
        token: Callable[[], bytes] = lambda: secrets.token_bytes(32),
        asking: Callable[[Address, str], None] = lambda operator, model: None,
        watch: Watch | None = None,
        payer: Payer | None = None,
    ) -> None:
        self._registry = registry
        self._signer = signer
        self._limits = limits
        self._now = now
        self._token = token
        self._asking = asking
        self._watch = watch
        self._payer = payer
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def whole(self, operator: Operator, path: str, model: str, body: bytes) -> tuple[SignedReceipt, bytes, float]:
        """One operator's answer with a receipt that holds, and its seconds; raises Refused, TimedOut or Malformed."""
        with self._watched(operator) as watched:
            question = await self._signed(operator, path, model, body)
            try:
                header, answer = await self._post(question, watched)
            except TimeoutError:
                raise TimedOut(f"it gave no whole answer in {self._limits.timeout_s:g} s") from None
            signed = SignedReceipt.from_header(header)
            counts = _usage_of(parse_json(answer, "the response"))
            self._check(signed, operator, model, question, hash_of(answer), counts)
            watched.tokens = sum(counts)
            if self._payer is not None:
                self._payer.owe(signed)
            return signed, answer, watched.waited_s

    async def stream(self, operator: Operator, model: str, body: bytes, most_tokens: int) -> AsyncGenerator[Delivered]:
        """One operator's answer to a chat with `stream: true`, as far as it is signed for; the last has a `finish`.

        Raises Refused, TimedOut or Malformed where it is not whole, after what was whole of it. Close it (`aclosing`)
        to let the operator's work end.
        """
        with self._watched(operator) as watched:
            question = await self._signed(operator, CHAT, model, body)
            tally, held = Tally(), list[str]()
            async with self._asked(question, watched) as response:
                async for event in self._events(response, watched):
                    if event.data == DONE:
                        raise Malformed("its stream ended without a finish that is signed for")
                    if event.data:
                        held.append(tally.chunk(event.raw, event.data))
                        if tally.completion_tokens > most_tokens:
                            raise Malformed(f"it counts {tally.completion_tokens} tokens; asked for {most_tokens}")
                        continue
                    signed = receipt_in(event)
                    if signed is not None:
                        counts = (tally.prompt_tokens, tally.completion_tokens)
                        self._check(signed, operator, model, question, tally.hash, counts)
                        watched.tokens = sum(counts)
                        if self._payer is not None:
                            self._payer.owe(signed)
                        if tally.finish is not None:
                            await _drained(response)
                            yield Delivered("".join(held), signed, tally.finish)
                            return
                        yield Delivered("".join(held), signed, None)
                        held.clear()
                    tally.passed(event.raw)
                raise Malformed("its stream broke off")

    @contextlib.contextmanager
    def _watched(self, operator: Operator) -> Iterator[_Watched]:
        watched, watch = _Watched(), self._watch
        if watch is None:
            yield watched
            return
        watch.began(operator)
        error: ModelError | None = None
        try:
            yield watched
        except ModelError as one:
            error = one
            raise
        finally:
            watch.ended(operator, error, watched.waited_s, watched.tokens)

    async def _signed(self, operator: Operator, path: str, model: str, body: bytes) -> _Question:
        url = _url_of(operator.endpoint, path)
        request = ModelRequest(
            chain_id=self._registry.chain.chain_id,
            registry=self._registry.address,
            operator=operator.account,
            path=path,
            body_hash=hash_of(body),
            time=int(self._now()),
            nonce=Hash("0x" + self._token().hex()),
        )
        signature = await self._signer.sign_request(request)
        who = Authorization(self._signer.address, request.time, request.nonce, signature)
        self._asking(operator.account, model)
        paid = {} if self._payer is None else dict(self._payer.headers(operator.account))
        return _Question(url, body, request, paid | {AUTH_HEADER: who.header()})

    @contextlib.asynccontextmanager
    async def _asked(self, question: _Question, watched: _Watched) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response of status 200."""
        limits, began = self._limits, time.monotonic()
        try:
            async with asyncio.timeout(limits.timeout_s):
                response = await self._http().post(
                    question.url,
                    data=question.body,
                    headers=question.headers | {"Content-Type": "application/json", "Accept-Encoding": "identity"},
                    allow_redirects=False,
                )
            watched.waited_s = time.monotonic() - began
            async with response:
                if 300 <= response.status < 400:
                    raise Declined("it redirects elsewhere, which is never followed", response.status)
                if response.status != 200:
                    async with asyncio.timeout(limits.gap_s):
                        words = _words_of(await _bounded(response, limits.most_answer_bytes))
                    raise Declined(f"it answered HTTP {response.status}: {words}", response.status)
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise Malformed("its answer is compressed, which was not asked for")
                yield response
        except TimeoutError:
            raise TimedOut(f"it gave no whole answer in {limits.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise Refused(f"it cannot be reached: {str(error) or type(error).__name__}") from None

    async def _post(self, question: _Question, watched: _Watched) -> tuple[str, bytes]:
        """The receipt's header and the body of a 200 answer."""
        began = time.monotonic()
        async with asyncio.timeout(self._limits.timeout_s), self._asked(question, watched) as response:
            body = await _bounded(response, self._limits.most_answer_bytes)
            watched.waited_s = time.monotonic() - began
            header = response.headers.getall(RECEIPT_HEADER, [])
            if len(header) != 1:
                raise Malformed(f"its answer has {len(header)} receipts; expected one")
            return header[0], body

    async def _events(self, response: aiohttp.ClientResponse, watched: _Watched) -> AsyncIterator[Event]:
        """The events of a stream; the time that the reader takes between them is not the operator's."""
        limits = self._limits
        source = events(response.content.iter_any(), most_bytes=limits.most_answer_bytes)
        while True:
            left_s = limits.timeout_s - watched.waited_s
            began = time.monotonic()
            try:
                async with asyncio.timeout(min(left_s, limits.gap_s)):
                    event = await anext(source)
            except StopAsyncIteration:
                return
            except TimeoutError:
                long = (
                    f"no end in {limits.timeout_s:g} s" if left_s <= limits.gap_s else f"nothing for {limits.gap_s:g} s"
                )
                raise TimedOut(f"its stream had {long}") from None
            finally:
                watched.waited_s += time.monotonic() - began
            yield event

    def _check(
        self,
        signed: SignedReceipt,
        operator: Operator,
        model: str,
        question: _Question,
        answer_hash: Hash,
        counts: tuple[int, int],
    ) -> None:
        """Raises Malformed for the first thing about the receipt that does not hold."""
        receipt, request = signed.receipt, question.request
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
            "answer_hash": answer_hash,
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
        if counts != (receipt.prompt_tokens, receipt.completion_tokens):
            raise Malformed(f"its receipt counts other tokens than its answer, which says {counts}")
        if receipt.prompt_tokens > len(question.body) + _FOREIGN_TOKENS:  # a token is a byte at least
            raise Malformed(f"it counts {receipt.prompt_tokens} tokens in a request of {len(question.body)} bytes")

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_timeout_s)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # a hung operator must not hold up the others
                timeout=timeout,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


@dataclass
class _Watched:
    waited_s: float = 0.0
    tokens: int = 0


async def _drained(response: aiohttp.ClientResponse) -> None:
    """Read the end of a stream that is whole already, so that its connection can be used again."""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(_DRAIN_S):
            await response.content.read(64)
            if not response.content.at_eof():
                await response.content.read(64)


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


def _usage_of(raw: Any) -> tuple[int, int]:
    """Prompt and completion tokens as the answer states them."""
    try:
        usage = raw["usage"]
        return int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Malformed("the response does not state its usage") from None
