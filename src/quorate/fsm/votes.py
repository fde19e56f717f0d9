"""The payloads of a round as its rule sees them, and what a rule answers."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, Generic, TypeVar

from quorate.errors import ServiceError
from quorate.frozen import changed
from quorate.fsm import codec
from quorate.units import Address

__all__ = ["Outcome", "Votes", "quorum_of"]

P = TypeVar("P")
E_co = TypeVar("E_co", bound=str, covariant=True)
S_co = TypeVar("S_co", covariant=True)


def quorum_of(n: int) -> int:
    """More than two thirds of `n`: any two quorums share an honest agent while fewer than a third lie."""
    return 2 * n // 3 + 1


@dataclass(frozen=True)
class Outcome(Generic[E_co, S_co]):
    """How a round ended: its event, which picks the next round, and the state that is now agreed."""

    event: E_co
    state: S_co


@dataclass(frozen=True)
class Votes(Generic[P]):
    """The payloads of one round, one a sender, in the order of the senders' addresses (never of arrival).

    Payloads are equal when their canonical encodings are.
    """

    pairs: tuple[tuple[Address, P], ...]
    n: int
    """How many agents may send."""
    quorum: int
    """More than two thirds of `n`."""

    @staticmethod
    def of(pairs: Iterable[tuple[Any, P]], *, n: int | None = None, quorum: int | None = None) -> Votes[P]:
        """Votes of these (sender, payload) pairs; by default all `n` have sent, and the quorum is that of `n`."""
        ordered = tuple(sorted(pairs, key=itemgetter(0)))
        senders = [sender for sender, _ in ordered]
        if len(set(senders)) != len(senders):
            raise ServiceError(f"a sender appears twice among {senders}")
        size = len(ordered) if n is None else n
        return Votes(ordered, size, quorum_of(size) if quorum is None else quorum)

    def plus(self, sender: Address, payload: P, encoding: bytes) -> Votes[P]:
        """These and the payload (and its encoding) of a sender that is not among them."""
        at = bisect(self.senders(), sender)
        made = changed(self, pairs=(*self.pairs[:at], (sender, payload), *self.pairs[at:]))
        made.__dict__["encodings"] = (*self.encodings[:at], encoding, *self.encodings[at:])  # as if it were made there
        return made

    @cached_property
    def encodings(self) -> tuple[bytes, ...]:
        """The canonical encodings of the payloads, in sender order."""
        return tuple([codec.encode(payload) for _, payload in self.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def __contains__(self, sender: object) -> bool:
        return sender in self.senders()

    def items(self) -> tuple[tuple[Address, P], ...]:
        """(sender, payload) pairs in sender order."""
        return self.pairs

    def values(self) -> tuple[P, ...]:
        """The payloads in sender order."""
        return tuple([payload for _, payload in self.pairs])

    def senders(self) -> tuple[Address, ...]:
        """Who has sent, in order."""
        return tuple([sender for sender, _ in self.pairs])

    def get(self, sender: Address) -> P | None:
        """The payload of `sender`, or None."""
        return dict(self.pairs).get(sender)

    def same(self) -> P | None:
        """The payload that a quorum sent, or None. With fewer than a third liars, an honest agent sent it too."""
        return next(iter(self.agreed()), None)

    def agreed(self) -> tuple[P, ...]:
        """As `same`, where None is itself a payload: the agreed one alone in a tuple, or nothing."""
        leader, count = self._leader
        if count < self.quorum:
            return ()
        return (self.pairs[self.encodings.index(leader)][1],)

    def split(self) -> bool:
        """True when no payload can reach the quorum any more, whatever the missing agents send."""
        return self._leader[1] + self.n - len(self.pairs) < self.quorum

    @cached_property
    def _leader(self) -> tuple[bytes, int]:
        """The encoding that most have sent, and how many; of equals that of the first sender."""
        return max(Counter(self.encodings).items(), key=itemgetter(1), default=(b"", 0))
