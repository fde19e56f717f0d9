"""One answer as it is made, by as many operators as it takes.

- Where an operator breaks off, the next is given the text so far as the beginning of the assistant's message, to go on
  with. The reader sees one answer: what was delivered is never taken back, nothing comes twice, and no text comes that
  no operator has signed for.
- A blank is handed out with the word after it: chat templates cut blanks off at the end of a message, and who continues
  one would say them again.
- An answer that must be JSON is never continued (a grammar begins anew with each request): `ModelClient.stream` reads
  it whole, elsewhere anew if it breaks, before any of it is handed out.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from quorate.chain import Operator
from quorate.errors import ModelError
from quorate.model.call import Attempt, Caller, Declined, Limits, NoAnswer
from quorate.model.receipt import SignedReceipt

__all__ = ["Continued", "Segment", "Stream", "encoded"]


@dataclass(frozen=True)
class Segment:
    """What one operator has delivered of an answer, and its last receipt for it."""

    text: str
    signed: SignedReceipt


class Stream:
    """An answer on its way: iterate over its texts, then look at what is known of it. Close it to stop the work.

    async with client.stream(messages, model="talker") as answer:
        async for text in answer:
            ...

    Iterating raises NoAnswer where nobody can finish the answer; `segments` holds what was delivered all the same.
    """

    def __init__(self, model: str, make: Callable[[Stream], AsyncGenerator[str]]) -> None:
        """`make` gives the texts, and notes in the stream whom they come from."""
        self.model = model
        self.attempts: list[Attempt] = []
        """The operators that did not, or not wholly, answer, with reasons."""
        self.segments: list[Segment] = []
        """Who delivered what, in order."""
        self.finish: str | None = None
        """Why the answer ended, once it has: `stop`, or `length`."""
        self._texts = make(self)

    @property
    def text(self) -> str:
        """What was delivered so far."""
        return "".join(segment.text for segment in self.segments)

    @property
    def prompt_tokens(self) -> int:
        """As the first operator counted; those that continue are paid for reading what was delivered before, too."""
        return self.segments[0].signed.receipt.prompt_tokens if self.segments else 0

    @property
    def completion_tokens(self) -> int:
        """Of all operators together."""
        return sum(segment.signed.receipt.completion_tokens for segment in self.segments)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await anext(self._texts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the operator that is answering, if any."""
        await self._texts.aclose()


def encoded(body: Mapping[str, Any]) -> bytes:
    """A request as it goes over the wire."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


class Continued:
    """The texts of an answer that operators continue for one another, one leg after the other."""

    def __init__(
        self,
        caller: Caller,
        candidates: Callable[[], Awaitable[tuple[list[Operator], list[Attempt]]]],
        asked: Mapping[str, Any],
        most_tokens: int,
        limits: Limits,
    ) -> None:
        """`candidates` gives whom to ask, in order, and who is passed over."""
        self._caller = caller
        self._candidates = candidates
        self._asked = asked
        self._most_tokens = most_tokens
        self._limits = limits

    async def texts(self, into: Stream) -> AsyncGenerator[str]:
        """What the reader is given; raises NoAnswer."""
        candidates, passed = await self._candidates()
        into.attempts += passed
        refused = 0
        for _ in range(self._limits.passes):
            again: list[Operator] = []
            for operator in candidates:
                if self._left(into) <= 0:
                    into.finish = "length"  # the last one broke off between its last token and its finish
                    return
                try:
                    async with aclosing(self._leg(into, operator)) as leg:
                        async for text in leg:
                            yield text
                except ModelError as error:
                    into.attempts.append(Attempt(operator.account, error))
                    blamed = isinstance(error, Declined) and error.blames_request
                    refused += blamed
                    if blamed and refused == self._limits.refusals:
                        raise NoAnswer(into.model, into.attempts) from None
                    if not blamed:
                        again.append(operator)
                    continue
                return
            candidates = again
        raise NoAnswer(into.model, into.attempts)

    async def _leg(self, into: Stream, operator: Operator) -> AsyncGenerator[str]:
        """What one operator adds to the answer; raises ModelError where that is not its end."""
        place, held, given = len(into.segments), "", ""
        stream = self._caller.stream(operator, into.model, encoded(self._question(into)), self._left(into))
        async with aclosing(stream) as parts:
            async for text, signed, finish in parts:
                whole = held + text
                ready = whole if finish else whole.rstrip()
                held, given = whole[len(ready) :], given + ready
                into.segments[place:] = [Segment(given, signed)]
                into.finish = finish
                if ready:
                    yield ready

    def _left(self, into: Stream) -> int:
        return self._most_tokens - into.completion_tokens

    def _question(self, into: Stream) -> dict[str, Any]:
        """The request, with what was delivered so far as the beginning of the answer."""
        said, messages = into.text, list(self._asked["messages"])
        asked = {name: value for name, value in self._asked.items() if name != "max_completion_tokens"}
        if said:
            if "continue_final_message" in asked:
                said = messages.pop()["content"] + said
            messages.append({"role": "assistant", "content": said})
            asked |= {"continue_final_message": True, "add_generation_prompt": False}
        return asked | {"messages": messages, "max_tokens": self._left(into), "stream": True}
