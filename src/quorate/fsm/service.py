"""A service: a start round and one transition table, checked as a whole when it is imported."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from quorate.errors import ServiceError
from quorate.fsm import codec
from quorate.fsm.round import AnyRound, Round
from quorate.fsm.state import State, is_kept

__all__ = ["BACK", "Interrupt", "Service"]


async def _never(ctx: Any, state: Any) -> None: ...


BACK: Final[AnyRound] = Round("InterruptedRound", _never, lambda state, votes: None, 0)
"""Where the last round of an interrupt leads: the round that was interrupted, opened anew with the state of now."""


@dataclass(frozen=True, eq=False)
class Interrupt:
    """Any ordinary round, or one of another interrupt, is left for `to`; an edge to `BACK` comes back to it.

    It happens as soon as a quorum of members asks for it (`Period.ask`), and in place of the next round when
    ``when(state)`` holds, which must not hold any more when it comes back. If both a round's end and the asks are
    there, the round ends first. Rounds that only interrupts lead to belong to them; an edge from these to an ordinary
    round ends all interrupts for good.

    Tolerates f liars: they can neither force an interrupt that is asked for, nor withhold one.
    """

    event: str
    to: AnyRound
    when: Callable[[Any], bool] | None = None


@dataclass(frozen=True, eq=False)
class Service:
    """A finite state machine of rounds over one state. Any mistake in it is a `ServiceError` at import that says where.

    `otherwise` takes every event of a round that has no edge of its own. A round in `final` has no edges: the service
    rests there. `config` is the dataclass that a user's settings (service.yaml) fill; acts see it as ``ctx.config``.
    """

    name: str
    state: type[State]
    start: AnyRound
    transitions: Mapping[tuple[AnyRound, str], AnyRound]
    otherwise: AnyRound | None = None
    final: tuple[AnyRound, ...] = ()
    config: type[Any] | None = None
    interrupts: tuple[Interrupt, ...] = ()
    """In order of precedence."""
    version: int = 1
    """Raise it with every change after which agents of the old code and of the new would decide otherwise."""
    migrations: Mapping[str, Callable[[Any, str], tuple[State, str]]] = field(default_factory=dict)
    """By an older version's `spec_hash`: a pure function from its state (as plain JSON: dicts, lists) and the name of
    its round to the state of this version, and the round in which that goes on."""
    where: str = field(default="", init=False)
    """File and line of the definition, for messages."""
    rounds: Mapping[str, AnyRound] = field(init=False)
    """Every round by name, in the order in which the table names them."""
    table: Mapping[tuple[str, str], AnyRound] = field(init=False)
    """(round name, event) to the next round, `otherwise` filled in."""
    main: frozenset[str] = field(init=False)
    """The ordinary rounds' names: those that the start leads to without an interrupt."""

    def __post_init__(self) -> None:
        frame = sys._getframe(2)  # the caller of the generated __init__
        self._set("where", f"{frame.f_code.co_filename}:{frame.f_lineno}")
        if not self.name.isidentifier():
            raise self._error(f"the name {self.name!r}; expected letters, digits and underscores, as its folder")
        if type(self.version) is not int or self.version < bool(self.migrations) + 1:
            raise self._error(f"version {self.version!r}; expected 1, or 2 and more where there are migrations")
        self._set("rounds", self._collect_rounds())
        self._check_state()
        for one in self.rounds.values():
            self._check_fields(one)
        self._set("table", self._complete_table())
        self._set("main", frozenset(self._paths([self.start])))
        self._check_paths()

    @property
    def edges(self) -> dict[tuple[str, str], str]:
        """(round name, event) to the next round's name, with the interrupts of ordinary rounds."""
        edges = {edge: to.name for edge, to in self.table.items()}
        ordinary = [name for name in self.rounds if name in self.main and self.rounds[name] not in self.final]
        return edges | {(name, one.event): one.to.name for one in self.interrupts for name in ordinary}

    def spec(self) -> dict[str, Any]:
        """The machine in the shape of open-autonomy's fsm_specification.yaml.

        That shape has no stack: where an interrupt comes back, the next state is written ``InterruptedRound``.
        """
        edges = self.edges
        return {
            "alphabet_in": sorted({event for _, event in edges}),
            "default_start_state": self.start.name,
            "final_states": sorted(one.name for one in self.final),
            "label": "".join(word.capitalize() for word in self.name.split("_")) + "AbciApp",
            "start_states": [self.start.name],
            "states": sorted({*self.rounds, *edges.values()}),
            "transition_func": {f"({name}, {event})": to for (name, event), to in sorted(edges.items())},
        }

    def spec_yaml(self) -> str:
        """`spec` as the text of the file fsm_specification.yaml."""
        lines: list[str] = []  # every text in it is an identifier, so nothing needs quotes
        for key, value in self.spec().items():
            lines += [f"{key}: {value}"] if isinstance(value, str) or not value else [f"{key}:"]
            lines += [f"  {edge}: {to}" for edge, to in value.items()] if isinstance(value, dict) else []
            lines += [f"- {item}" for item in value] if isinstance(value, list) else []
        return "\n".join(lines) + "\n"

    @cached_property
    def spec_hash(self) -> str:
        """64 hex digits over what agents must share to stay in step: the machine, time limits, types, the version.

        Not covered: the code of the rules. Agents that run different rules find out by different digests.
        """
        shape = {
            "spec": self.spec(),
            "timeouts_ms": {name: one.timeout_ms for name, one in self.rounds.items()},
            "payloads": {name: codec.describe(one.payload) for name, one in self.rounds.items()},
            "state": codec.describe(self.state),
            **({"version": self.version} if self.version > 1 else {}),
        }
        return hashlib.sha256(codec.encode(shape)).hexdigest()

    def _collect_rounds(self) -> dict[str, AnyRound]:
        named = [self.start, *self.final, *(one.to for one in self.interrupts)]
        for (source, _), target in self.transitions.items():
            named += [source, target]
        rounds: dict[str, AnyRound] = {}
        for one in [*named, *([] if self.otherwise is None else [self.otherwise])]:
            if one is not BACK and rounds.setdefault(one.name, one) is not one:
                raise self._error(f"two rounds are named {one.name}: {rounds[one.name].where} and {one.where}")
        return rounds

    def _check_state(self) -> None:
        codec.require_codable(self.state, f"service {self.name} ({self.where}): its state")
        for one in dataclasses.fields(self.state):
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
                raise self._error(f"{self.state.__name__}.{one.name} has no default, so no period can begin with it")
        try:
            codec.conform(self.state, self.state())
        except ServiceError as error:
            raise self._error(f"a default of {self.state.__name__} is of another type: {error.message}") from error

    def _check_fields(self, one: AnyRound) -> None:
        fields, at, owner = get_type_hints(self.state), f"{one} ({one.where})", self.state.__name__
        reads = one.traits.reads if one.traits else {}
        stores = one.traits.stores(one.payload) if one.traits else {}
        for name in sorted(one.needs.union(stores, *one.sets.values())):
            if name not in fields:
                raise self._error(f"{at} uses the field {name!r}; {owner} has {sorted(fields)}")
            if name in reads and not _fits(reads[name], fields[name]):
                raise self._error(f"{at} reads {reads[name]} from {owner}.{name}, which is {fields[name]}")
            if name in stores and not _fits(fields[name], stores[name]):
                raise self._error(f"{at} puts {stores[name]} into {owner}.{name}, which is {fields[name]}")

    def _complete_table(self) -> dict[tuple[str, str], AnyRound]:
        table = {(source.name, event): target for (source, event), target in self.transitions.items()}
        for source, event in self.transitions:
            if event not in source.events:
                ends = sorted(source.events)
                raise self._error(f"{source} ({source.where}) never ends with {event}; it ends with {ends}")
        for one in self.rounds.values():
            edges = [event for name, event in table if name == one.name]
            if one in self.final and edges:
                raise self._error(f"{one} is final, yet has an edge")
            if one in self.final:
                continue
            if not edges:
                fix = "Add one, or name the round in final=(...)."
                raise self._error(f"no edge leaves {one} ({one.where})", fix)
            for event in sorted(one.events.difference(edges)):
                if self.otherwise is None:
                    raise self._error(f"no edge for ({one}, {event})", "Add it, or give otherwise= a round.")
                table[one.name, event] = self.otherwise
        return dict(sorted(table.items()))

    def _check_paths(self) -> None:
        """Every round is reached; whatever it needs was set before; whoever comes back was interrupted."""
        asked = {one.event for one in self.interrupts}
        if len(asked) < len(self.interrupts) or asked & {event for _, event in self.table}:
            raise self._error(f"of the interrupts {sorted(asked)} one has the event of another, or of a round")
        reached = self._paths([self.start, *(one.to for one in self.interrupts)])
        for name, one in self.rounds.items():
            if name not in reached:
                raise self._error(f"nothing leads to {name} ({one.where}): its edges are dead")
            returns = [event for event in sorted(one.events) if self.table.get((name, event)) is BACK]
            if name in self.main and returns:
                raise self._error(f"{one} ({one.where}) leads BACK with {returns[0]}, but is no interrupt's own")
            if name not in self.main and one.resets:
                raise self._error(f"{one} ({one.where}) ends the period inside an interrupt, which cannot come back")
        for needed in sorted({name for one in self.rounds.values() for name in one.needs}):
            unset = self._unset(needed)
            for name, one in self.rounds.items():
                if needed in one.needs and name in unset:
                    way = " -> ".join(unset[name])
                    raise self._error(
                        f"{one} ({one.where}) needs the field {needed!r}, which no round sets on the way {way}",
                        fix="Let an earlier round set it; a rule of your own declares that: agree(..., sets={...}).",
                    )

    def _unset(self, needed: str) -> dict[str, tuple[str, ...]]:
        """The rounds that may open while the field is as empty as its default, each with a way that leads there."""
        one = next(one for one in dataclasses.fields(self.state) if one.name == needed)
        if getattr(self.state(), needed):
            return {}
        fresh = [self.start]  # and whatever opens a period, unless the field crosses it
        if not is_kept(one):
            fresh += [to for (name, event), to in self.table.items() if event in self.rounds[name].resets]
        return self._paths(fresh, needed)

    def _paths(self, begin: Iterable[AnyRound], unset: str = "") -> dict[str, tuple[str, ...]]:
        """Every round that these lead to, with the way there; with `unset`, by edges that do not set that field."""
        paths: dict[str, tuple[str, ...]] = {one.name: (one.name,) for one in begin}
        ahead = list(paths)
        while ahead:
            here = self.rounds[ahead.pop()]
            onward = [(event, to) for (name, event), to in self.table.items() if name == here.name]
            if unset:  # an interrupt may come at any time
                onward += [(one.event, one.to) for one in self.interrupts if here not in self.final]
            for event, to in onward:
                if to is not BACK and to.name not in paths and unset not in here.sets.get(event, ()):
                    paths[to.name] = (*paths[here.name], to.name)
                    ahead.append(to.name)
        return paths

    def _error(self, message: str, fix: str = "") -> ServiceError:
        return ServiceError(f"service {self.name} ({self.where}): {message}", fix=fix)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # derived once, while the frozen object is made


def _fits(field_type: Any, stored: Any) -> bool:
    """True when every value of type `stored` may stand in a field of `field_type`."""
    if field_type == stored:
        return True
    if isinstance(field_type, types.UnionType) or get_origin(field_type) is typing.Union:
        parts = get_args(field_type)
        stored_parts = get_args(stored) if get_origin(stored) in (types.UnionType, typing.Union) else (stored,)
        return all(any(_fits(part, one) for part in parts) for one in stored_parts)
    if get_origin(stored) is Literal:
        return all(_holds(field_type, option) for option in get_args(stored))
    if isinstance(stored, typing.NewType):
        return _fits(field_type, stored.__supertype__)
    if get_origin(field_type) is tuple and get_origin(stored) is tuple:
        mine, its = get_args(field_type), get_args(stored)
        return len(mine) == len(its) and all(_fits(a, b) for a, b in zip(mine, its, strict=True))
    return False


def _holds(field_type: Any, value: Any) -> bool:
    try:
        codec.conform(field_type, value)
    except ServiceError:
        return False
    return True
