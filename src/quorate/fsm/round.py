"""A round: what one agent does, and how the agents agree on what comes of it."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, get_args, get_origin

from quorate.errors import ServiceError
from quorate.fsm import codec
from quorate.fsm.state import State
from quorate.fsm.votes import Outcome, Votes
from quorate.units import Address

__all__ = [
    "NO_MAJORITY", "ROUND_TIMEOUT", "Act", "AnyRound", "Context", "Ready", "Round", "Rule", "agree", "with_deadline",
]  # fmt: skip

ROUND_TIMEOUT: Final = "ROUND_TIMEOUT"
"""The event of a round whose time was over before its rule could decide."""

NO_MAJORITY: Final = "NO_MAJORITY"
"""The event of a round in which no payload can reach a quorum any more."""

S = TypeVar("S", bound=State)
P = TypeVar("P")

Rule = Callable[[S, Votes[P]], Outcome[str, S] | None]
"""Decides a round from the agreed state and the payloads so far; None: go on. Pure: equal on every machine."""

Act = Callable[[Any, S], Coroutine[Any, Any, P]]
"""What one agent does in a round. Its first argument is a `Context`, or a Protocol that asks for more."""


class Context(Protocol):
    """What one agent may reach while it acts. A skill that needs more extends it by a Protocol of its own."""

    @property
    def me(self) -> Address:
        """This agent's address."""

    @property
    def config(self) -> Any:
        """What this agent's operator configured (service.yaml)."""

    @property
    def log(self) -> Any:
        """A `logging.Logger`."""

    async def beacon(self) -> int:
        """A number that all agents know alike, another one each period: see `Period.beacon` for what can bias it."""

    async def sleep(self, seconds: float) -> None:
        """Wait; in a simulation the virtual clock runs on."""


@dataclass(frozen=True)
class Ready:
    """A ready-made rule, and what it says of itself, so that a service can be checked at import."""

    settle: Rule[Any, Any]
    events: frozenset[str] = frozenset({"DONE"})
    stores: Callable[[Any], Mapping[str, Any]] = lambda payload: {}
    """From the payload's type to the type that each state field must take; they are set when the event is DONE."""
    reads: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """State fields that the rule looks at, with their type."""
    accepts: Callable[[Any], str | None] = lambda payload: None
    """Why the rule cannot count payloads of this type, or None."""
    at_deadline: Rule[Any, Any] | None = None
    """Decides when the round's time is over; None, or None from it, is `ROUND_TIMEOUT`."""

    def __call__(self, state: Any, votes: Votes[Any]) -> Outcome[str, Any] | None:
        """As any rule."""
        return self.settle(state, votes)


@dataclass(frozen=True, eq=False)
class Round(Generic[S, P]):
    """Made by `agree`; two rounds are the same only if they are one object."""

    name: str
    act: Act[S, P]
    settle: Rule[S, P]
    timeout_ms: int
    events: frozenset[str] = frozenset()
    payload: Any = None
    """The payload's type, as annotated."""
    where: str = ""
    """File and line, for messages."""
    needs: frozenset[str] = frozenset()
    """State fields that an earlier round must have set."""
    sets: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    """State fields that the round sets, by event."""
    resets: frozenset[str] = frozenset()
    """Events with which a new period begins."""

    @property
    def traits(self) -> Ready | None:
        """What the rule says of itself, if it is a ready-made one."""
        return self.settle if isinstance(self.settle, Ready) else None

    def at_deadline(self, state: S, votes: Votes[P]) -> Outcome[str, S] | None:
        """What the rule decides when the round's time is over; None is `ROUND_TIMEOUT`."""
        decide = self.settle.at_deadline if isinstance(self.settle, Ready) else None
        return None if decide is None else decide(state, votes)

    def encode(self, payload: P) -> bytes:
        """What goes to the other agents; `ServiceError` if `act` returned something else than it says."""
        try:
            return codec.encode(codec.conform(self.payload, payload))
        except ServiceError as error:
            raise ServiceError(f"{self.name} ({self.where}): act returned {error.message}", fix=error.fix) from error

    def __repr__(self) -> str:
        return self.name


AnyRound = Round[Any, Any]


def agree(
    rule: Rule[S, P],
    *,
    timeout_s: float = 30,
    needs: Collection[str] = (),
    sets: Mapping[str, Collection[str]] = types.MappingProxyType({}),
    resets: Collection[str] = (),
) -> Callable[[Act[S, P]], Round[S, P]]:
    """Make an async function a round: it is what one agent does, `rule` is how all agree, it returns the payload.

    `timeout_s` is counted in block time from the first block after the one that opened the round.

    What the round needs is checked at import, as far as it is declared: `needs` names the state fields that must have
    been set on every path to it, `sets` (event to fields) what a rule of your own sets, `resets` the events with which
    it ends the period. Ready-made rules declare theirs. A field whose default is not empty counts as set.
    """

    def wrap(act: Act[S, P]) -> Round[S, P]:
        where = _where(act)
        name = "".join(word.capitalize() for word in getattr(act, "__name__", "").split("_")) + "Round"
        if timeout_s < 0.001:
            raise ServiceError(f"{name} ({where}): timeout_s is {timeout_s}; expected at least a millisecond")
        payload = _return_hint(act, f"{name} ({where})")
        codec.require_codable(payload, f"{name} ({where}): its payload")
        events, need, gives = _events_of(rule) | {ROUND_TIMEOUT}, set(needs), {e: set(f) for e, f in sets.items()}
        if isinstance(rule, Ready):
            if reason := rule.accepts(payload):
                raise ServiceError(f"{name} ({where}): {reason}")
            need |= rule.reads.keys()
            if stored := rule.stores(payload):
                gives.setdefault("DONE", set()).update(stored)
        if strange := sorted({*gives, *resets} - events):
            raise ServiceError(f"{name} ({where}) never ends with {strange}; it ends with {sorted(events)}")
        given = {event: frozenset(fields) for event, fields in gives.items()}
        limit_ms = round(timeout_s * 1000)
        return Round(name, act, rule, limit_ms, events, payload, where, frozenset(need), given, frozenset(resets))

    return wrap


def with_deadline(rule: Rule[S, P], at_deadline: Rule[S, P]) -> Ready:
    """`rule`, but when the round's time is over `at_deadline` decides on what has come; None there is ROUND_TIMEOUT."""
    ready = rule if isinstance(rule, Ready) else Ready(rule)
    return dataclasses.replace(ready, events=_events_of(rule) | _events_of(at_deadline), at_deadline=at_deadline)


def _events_of(rule: Callable[..., Any]) -> frozenset[str]:
    """Every event that `rule` can answer: said by a ready-made one, else read from its return annotation."""
    if isinstance(rule, Ready):
        return rule.events
    where = f"the rule {getattr(rule, '__qualname__', rule)!s} ({_where(rule)})"
    hint = _return_hint(rule, where)
    parts = get_args(hint) if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union else (hint,)
    outcomes = [part for part in parts if part is not types.NoneType]
    events = [get_args(part)[0] if get_origin(part) is Outcome else None for part in outcomes]
    if any(get_origin(event) is not Literal for event in events):
        raise ServiceError(f"{where} returns {hint}", fix="Annotate it as Outcome[Literal[...], S] | None.")
    return frozenset(name for event in events for name in get_args(event))


def _return_hint(function: Callable[..., Any], where: str) -> Any:
    """The return annotation alone: the context's type is often imported for the type checker only."""
    hints = getattr(function, "__annotations__", {})
    if "return" not in hints:
        raise ServiceError(f"{where} does not say what it returns", fix="Annotate its return type.")
    holder = types.SimpleNamespace(__annotations__={"return": hints["return"]})
    try:
        return typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}))["return"]
    except NameError as error:
        fix = "Define or import that name at the top of the module."
        raise ServiceError(f"{where}: its return type cannot be resolved: {error}", fix=fix) from error


def _where(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "?" if code is None else f"{code.co_filename}:{code.co_firstlineno}"
