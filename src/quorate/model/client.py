"""Asks staked operators, and counts an answer only if somebody with a stake has signed for it.

- Operators come from the registry: listed (their stake reaches the minimum), not paused, serving the model by name.
  Their order is drawn anew for each question from the client's address and a random nonce: load spreads, and none can
  move up.
- An answer counts if its receipt is signed by the operator's *registered* key and names this operator, client,
  request, answer, nonce, model and registered manifest hash, and if the answer holds its schema. Otherwise the reason
  is kept and the next operator is asked; when all have failed, `NoAnswer` holds each reason.
- What the receipt does not prove is that the model was really run (evaluations and audits are for that), so a caller
  weighs words by what the model was measured to be worth.
- Everything that comes back is hostile (`quorate.model.call`). A stream is continued elsewhere where it breaks
  (`quorate.model.stream`).
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from quorate.chain import Operator, Wallet
from quorate.errors import ConfigError, Malformed, ModelError, Refused
from quorate.model.call import Attempt, Caller, Declined, Limits, NoAnswer, Payer, Registry
from quorate.model.fields import CHAT, EMBEDDINGS, TASKS, is_structured
from quorate.model.receipt import Receipt, SignedReceipt
from quorate.model.request import RequestSigner, WalletSigner
from quorate.model.routing import Router
from quorate.model.schema import Schema, parse_json
from quorate.model.stream import Continued, Segment, Stream, encoded
from quorate.signatures import keccak
from quorate.units import Address

__all__ = ["Answer", "Embedding", "Forwarded", "ModelClient"]

T = TypeVar("T")
Message = Mapping[str, Any]
"""One message of a chat as the OpenAI API has it: `role` and `content`."""

_WARMER = 0.7  # a greedy model repeats a broken answer for ever: from the second try on, it samples


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
class Forwarded:
    """An operator's answer as it came, byte for byte, so that whoever it is passed on to can check the receipt."""

    body: bytes
    signed: SignedReceipt
    attempts: tuple[Attempt, ...]
    seconds: float


@dataclass(frozen=True)
class _Found(Generic[T]):
    content: T
    body: bytes
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
        router: Router | None = None,
        payer: Payer | None = None,
    ) -> None:
        """`model` is what `ask` uses. `now` and `token` are the clock and the source of nonces, for tests.

        `router` orders the operators for each question; None: the order is drawn (see above). `payer` is told what is
        owed, and says what goes with a question. `asking` is told which
        operator is about to be asked for which model: whoever watches can say whom we wait for.
        """
        self._registry = registry
        self._signer: RequestSigner = WalletSigner(signer) if isinstance(signer, Wallet) else signer
        self._model = model
        self._limits = limits or Limits()
        self._token = token
        self._router = router
        self._caller = Caller(
            registry, self._signer, self._limits, now=now, token=token, asking=asking, watch=router, payer=payer
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._caller.close()

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
        asked = _chat(messages, form, model=model, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop)

        def read(raw: Any) -> tuple[str, Any]:
            text = _text_of(raw, complete=form is not None)
            return text, None if form is None else form.parse(text)

        found = await self._find(CHAT, model, lambda turn: _varied(asked, turn), read)
        text, value = found.content
        return Answer(text, value, *found.signed, found.attempts, found.seconds)

    def stream(
        self,
        messages: Sequence[Message],
        schema: type[Any] | Schema[Any] | Mapping[str, Any] | None = None,
        *,
        model: str,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Stream:
        """The next message of a chat while it is made; see `Stream`. With a `schema` it comes in one piece, that holds
        it.
        """
        form = None if schema is None else Schema.of(schema)
        asked = _chat(messages, form, model=model, max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop)
        return self.forward_stream(asked, max_tokens)

    async def forward(self, path: str, asked: Mapping[str, Any]) -> Forwarded:
        """The answer to a request of the OpenAI API that names its model; raises NoAnswer.

        For whoever passes on others' requests: check them by `quorate.model.fields.fault_in` before.
        """
        check = _text_check(asked) if TASKS[path] == "chat" else _vectors_check(asked)
        found = await self._find(path, str(asked["model"]), lambda turn: _varied(asked, turn), check)
        return Forwarded(found.body, found.signed, found.attempts, found.seconds)

    def forward_stream(self, asked: Mapping[str, Any], max_tokens: int) -> Stream:
        """The same for a chat, as a stream of at most `max_tokens`, whatever else the request says of that."""
        model = str(asked["model"])
        if is_structured(asked):
            whole = {name: value for name, value in asked.items() if name != "max_completion_tokens"}
            return Stream(
                model, lambda into: self._in_one_piece(whole | {"max_tokens": max_tokens, "stream": False}, into)
            )

        async def candidates() -> tuple[list[Operator], list[Attempt]]:
            return await self._candidates(model)

        return Stream(model, Continued(self._caller, candidates, asked, max_tokens, self._limits).texts)

    async def _in_one_piece(self, asked: Mapping[str, Any], into: Stream) -> AsyncGenerator[str]:
        def read(raw: Any) -> tuple[str, str]:
            check(raw)
            return _text_of(raw, complete=False), str(raw["choices"][0]["finish_reason"])

        check = _text_check(asked)
        found = await self._find(CHAT, into.model, lambda turn: _varied(asked, turn), read)
        into.attempts += found.attempts
        text, into.finish = found.content
        into.segments.append(Segment(text, found.signed))
        yield text

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
        candidates, attempts = await self._candidates(model)
        refused = 0
        for turn in range(self._limits.passes):
            question = encoded(body(turn))
            again: list[Operator] = []
            for operator in candidates:
                try:
                    signed, answer, seconds = await self._caller.whole(operator, path, model, question)
                except ModelError as error:
                    attempts.append(Attempt(operator.account, error))
                    refused += isinstance(error, Declined) and error.blames_request
                    if refused == self._limits.refusals:
                        raise NoAnswer(model, attempts) from None
                    continue
                try:
                    content = read(parse_json(answer, "the response"))
                except Malformed as error:
                    attempts.append(Attempt(operator.account, error))
                    again.append(operator)
                    continue
                return _Found(content, answer, signed, tuple(attempts), seconds)
            candidates = again
        raise NoAnswer(model, attempts)

    async def _candidates(self, model: str) -> tuple[list[Operator], list[Attempt]]:
        """The operators to ask for `model`, in order, and those that serve it but are passed over."""
        found, passed = _candidates(await self._registry.operators(), model)
        if self._router is not None:
            return self._router.order(found), passed
        draw = self._token()
        found.sort(key=lambda one: keccak(_word(self._signer.address) + draw + _word(one.account)))
        return found, passed


def _chat(
    messages: Sequence[Message],
    form: Schema[Any] | None,
    *,
    model: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    stop: Sequence[str],
) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    if stop:
        asked["stop"] = list(stop)
    return asked if form is None else asked | {"response_format": form.response_format()}


def _varied(asked: Mapping[str, Any], turn: int) -> dict[str, Any]:
    """The request for a later turn: with another seed, and sampled."""
    if turn == 0 or "messages" not in asked:
        return dict(asked)
    return {**asked, "temperature": max(asked.get("temperature", 1.0), _WARMER), "seed": asked.get("seed", 0) + turn}


def _candidates(operators: Sequence[Operator], model: str) -> tuple[list[Operator], list[Attempt]]:
    """The operators to ask for `model`, and those that serve it but are passed over."""
    serving = [one for one in operators if one.model(model) is not None]
    passed = [Attempt(one.account, Refused(reason), was_asked=False) for one in serving if (reason := _not_active(one))]
    return [one for one in serving if not _not_active(one)], passed


def _not_active(operator: Operator) -> str | None:
    if operator.stake <= 0:
        return "it has no stake"
    return "it is paused" if operator.paused else None


def _text_check(asked: Mapping[str, Any]) -> Callable[[Any], None]:
    """Raises Malformed for a response without a text, or with one that ended by itself and is not the JSON asked for.

    A schema that says more than we can check is the operator's to hold; its answers are JSON at least.
    """
    form: Schema[Any] | None = None
    if asked.get("response_format", {}).get("type") == "json_schema":
        try:
            form = Schema.of(asked["response_format"]["json_schema"]["schema"])
        except (ConfigError, KeyError, TypeError, AttributeError):
            form = None

    def check(raw: Any) -> None:
        text = _text_of(raw, complete=False)
        if is_structured(asked) and raw["choices"][0]["finish_reason"] == "stop":
            if form is None:
                parse_json(text, "the answer")
            else:
                form.parse(text)

    return check


def _vectors_check(asked: Mapping[str, Any]) -> Callable[[Any], None]:
    count = 1 if isinstance(asked["input"], str) else len(asked["input"])

    def check(raw: Any) -> None:
        _vectors_of(raw, count)

    return check


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


def _word(address: Address) -> bytes:
    return bytes.fromhex(address[2:])
