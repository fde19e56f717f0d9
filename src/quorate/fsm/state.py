"""What the agents agree on: one frozen dataclass a service, and which of its fields outlive a period."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from quorate.fsm import codec
from quorate.fsm.votes import quorum_of
from quorate.units import Address

__all__ = ["State", "is_kept", "keep"]

T = TypeVar("T")
SelfState = TypeVar("SelfState", bound="State")

_KEEP = "quorate.keep"


def keep(default: T) -> T:
    """A field of a `State` that crosses into the next period: ``wins: int = keep(0)``."""
    return dataclasses.field(default=default, metadata={_KEEP: True})


def is_kept(field: dataclasses.Field[Any]) -> bool:
    """True for a field made by `keep`."""
    return _KEEP in field.metadata


@dataclass(frozen=True)
class State:
    """The agreed state; a service subclasses it, and every field there has a default.

    Never mutated: a rule returns ``dataclasses.replace(state, ...)``.
    """

    participants: tuple[Address, ...] = keep(())
    """The agents that registered, sorted; empty until they did."""
    period: int = 0
    """Laps of the service that are over."""

    @cached_property
    def _encoding(self) -> bytes:
        """The canonical encoding; a state never changes, so it is made once."""
        return codec.encode(self)

    @property
    def quorum(self) -> int:
        """More than two thirds of the participants."""
        return quorum_of(len(self.participants))

    def next_period(self: SelfState) -> SelfState:
        """The state that the next period begins with: fields made by `keep` stay, the others get their defaults."""
        fresh: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if is_kept(f)}
        return type(self)(**{**fresh, "period": self.period + 1})
