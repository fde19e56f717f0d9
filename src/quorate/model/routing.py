"""Which operator to ask first: the better of two drawn ones, by what they were measured to do. Nothing here does I/O.

- Of two operators drawn by lot, the one with the smaller product of pace (seconds a token) and queue (our questions
  that it has not answered) is asked. A lot of two spreads load without a herd; the rest, drawn the same way, come next.
- A *breaker* opens after `trips` failures in a row that are the operator's own: no connection, no answer in time, an
  error of the server's, a receipt that does not hold. While it is open the operator comes last; after `rest_s` seconds,
  longer each time, one question may try it. A refusal that blames the request never counts, or one caller with a
  broken request could take every operator away from everybody else; nor does "come again later".
- No operator is ever left out: where all breakers are open, asking is better than failing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from quorate.chain import Operator
from quorate.errors import ModelError
from quorate.model.call import Declined
from quorate.units import Address

__all__ = ["Measured", "Router", "Seen"]

_SETUP_TOKENS = 16  # what a question costs beside its tokens, in tokens
_UNKNOWN_PACE_S = 1.0
_WEIGHT = 0.2  # of the newest measurement
_LONGEST_REST = 32  # times `rest_s`


class Router(Protocol):
    """Orders operators for a question, and is told how they do."""

    def order(self, candidates: Sequence[Operator]) -> list[Operator]:
        """All of them, the one to ask first in front."""
        ...

    def began(self, operator: Operator) -> None:
        """A question is on its way to it."""
        ...

    def ended(self, operator: Operator, error: ModelError | None, waited_s: float, tokens: int) -> None:
        """It is answered, or not, after `waited_s` of waiting for it: a stream's reader's own time is not its."""
        ...


@dataclass
class Seen:
    """What is known of one operator."""

    in_flight: int = 0
    pace_s: float | None = None
    """Seconds a token, the newest weighing most; None: never measured, which counts as the best."""
    failures: int = 0
    """In a row, and its own."""
    opened: int = 0
    """How often its breaker opened since it last answered."""
    rests_until: float = 0.0
    answered: int = 0
    failed: int = 0
    declined: int = 0
    """Requests that it found fault with, or had no room for, since it last answered."""


class Measured:
    """A `Router` by power of two choices, with a breaker for each operator."""

    def __init__(
        self,
        *,
        trips: int = 3,
        rest_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        draw: random.Random | None = None,
    ) -> None:
        """`draw` is for tests; by default the system's random numbers."""
        self._trips = trips
        self._rest_s = rest_s
        self._clock = clock
        self._draw = draw or random.SystemRandom()
        self._seen: dict[Address, Seen] = {}

    def seen(self, operator: Address) -> Seen:
        """What is known of it so far."""
        return self._seen.setdefault(operator, Seen())

    def is_open(self, operator: Address) -> bool:
        """Whether its breaker is open now."""
        return self.seen(operator).rests_until > self._clock()

    def order(self, candidates: Sequence[Operator]) -> list[Operator]:
        """All of them; those whose breakers are open last, the one that rests the shortest first among them."""
        well = [one for one in candidates if not self.is_open(one.account)]
        resting = [one for one in candidates if self.is_open(one.account)]
        self._draw.shuffle(well)
        ordered: list[Operator] = []
        while well:
            pair = well[-2:]
            chosen = min(pair, key=lambda one: self._cost_of(one.account))
            well.remove(chosen)
            ordered.append(chosen)
        return ordered + sorted(resting, key=lambda one: self.seen(one.account).rests_until)

    def began(self, operator: Operator) -> None:
        """One more is in flight; a breaker whose rest is over lets one through and closes again behind it."""
        seen = self.seen(operator.account)
        seen.in_flight += 1
        if seen.opened:
            seen.rests_until = self._clock() + self._rest_of(seen)

    def ended(self, operator: Operator, error: ModelError | None, waited_s: float, tokens: int) -> None:
        """Take in how it went. A question that its asker gave up (no error, no tokens) says nothing."""
        seen = self.seen(operator.account)
        seen.in_flight -= 1
        if error is None and tokens == 0:
            return
        if error is None:
            pace_s = waited_s / (tokens + _SETUP_TOKENS)
            seen.pace_s = pace_s if seen.pace_s is None else seen.pace_s + _WEIGHT * (pace_s - seen.pace_s)
            seen.answered += 1
            seen.failures = seen.opened = seen.declined = 0
            seen.rests_until = 0.0
        elif isinstance(error, Declined) and (error.blames_request or error.is_busy):
            seen.declined += 1
        else:
            seen.failed += 1
            seen.failures += 1
            if seen.failures >= self._trips:
                seen.rests_until = self._clock() + self._rest_of(seen)
                seen.opened += 1

    def _cost_of(self, operator: Address) -> float:
        """Who only ever declines is fast at it: that must not draw questions to it."""
        seen = self.seen(operator)
        useless = min(seen.failures + seen.declined, 8)
        pace_s = seen.pace_s if seen.pace_s is not None else (_UNKNOWN_PACE_S if useless else 0.0)
        return pace_s * (1 + seen.in_flight) * 2.0**useless

    def _rest_of(self, seen: Seen) -> float:
        """Longer each time, and never the same twice: gateways must not come back all at once."""
        times: int = min(2 ** min(seen.opened, 16), _LONGEST_REST)
        return self._rest_s * times * self._draw.uniform(0.75, 1.25)
