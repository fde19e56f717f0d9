"""A service: a start round and one transition table, checked as a whole when it is imported."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args, get_origin, get_type_hints

from quorate.errors import ServiceError
from quorate.fsm import codec
from quorate.fsm.round import AnyRound
from quorate.fsm.state import State

__all__ = ["Service"]


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
    where: str = field(default="", init=False)
    """File and line of the definition, for messages."""
    rounds: Mapping[str, AnyRound] = field(init=False)
    """Every round by name, in the order in which the table names them."""
    table: Mapping[tuple[str, str], AnyRound] = field(init=False)
    """(round name, event) to the next round, `otherwise` filled in."""

    def __post_init__(self) -> None:
        frame = sys._getframe(2)  # the caller of the generated __init__
        self._set("where", f"{frame.f_code.co_filename}:{frame.f_lineno}")
        if not self.name.isidentifier():
            raise self._error(f"the name {self.name!r}; expected letters, digits and underscores, as its folder")
        self._set("rounds", self._collect_rounds())
        self._check_state()
        for one in self.rounds.values():
            self._check_fields(one)
        self._set("table", self._complete_table())
        self._check_reachable()

    def next(self, round: AnyRound, event: str) -> AnyRound:
        """The round that follows; the table is complete for every event that `round` can end with."""
        return self.table[round.name, event]

    def spec(self) -> dict[str, Any]:
        """The machine in the shape of open-autonomy's fsm_specification.yaml."""
        return {
            "alphabet_in": sorted({event for _, event in self.table}),
            "default_start_state": self.start.name,
            "final_states": sorted(one.name for one in self.final),
            "label": _camel(self.name) + "AbciApp",
            "start_states": [self.start.name],
            "states": sorted(self.rounds),
            "transition_func": {f"({name}, {event})": to.name for (name, event), to in sorted(self.table.items())},
        }

    def spec_yaml(self) -> str:
        """`spec` as the text of the file fsm_specification.yaml."""
        return "".join(_yaml_lines(self.spec()))

    @cached_property
    def spec_hash(self) -> str:
        """64 hex digits over what agents must share to stay in step: the machine, time limits, types of values.

        Not covered: the code of the rules. Agents that run different rules find out by different digests.
        """
        shape = {
            "spec": self.spec(),
            "timeouts_ms": {name: one.timeout_ms for name, one in self.rounds.items()},
            "payloads": {name: codec.describe(one.payload) for name, one in self.rounds.items()},
            "state": codec.describe(self.state),
        }
        return hashlib.sha256(codec.encode(shape)).hexdigest()

    def _collect_rounds(self) -> dict[str, AnyRound]:
        named = [self.start, *self.final]
        for (source, _), target in self.transitions.items():
            named += [source, target]
        rounds: dict[str, AnyRound] = {}
        for one in [*named, *([] if self.otherwise is None else [self.otherwise])]:
            if rounds.setdefault(one.name, one) is not one:
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
        if one.traits is None:
            return
        fields = get_type_hints(self.state)
        at = f"{one.name} ({one.where})"
        for name, stored in (*one.traits.reads.items(), *one.traits.stores(one.payload).items()):
            if name not in fields:
                raise self._error(f"{at} uses the field {name!r}; {self.state.__name__} has {sorted(fields)}")
            if not _fits(fields[name], stored) and not (name in one.traits.reads and fields[name] is str):
                raise self._error(f"{at} puts {stored} into {self.state.__name__}.{name}, which is {fields[name]}")

    def _complete_table(self) -> dict[tuple[str, str], AnyRound]:
        table = {(source.name, event): target for (source, event), target in self.transitions.items()}
        for source, event in self.transitions:
            if event not in source.events:
                raise self._error(
                    f"{source} ({source.where}) never ends with {event}; it ends with {sorted(source.events)}"
                )
        for one in self.rounds.values():
            explicit = any(name == one.name for name, _ in table)
            if one in self.final:
                if explicit:
                    raise self._error(f"{one} is final, yet has an edge")
                continue
            if not explicit:
                raise self._error(
                    f"no edge leaves {one} ({one.where})", fix="Add one, or name the round in final=(...)."
                )
            for event in sorted(one.events):
                if (one.name, event) not in table:
                    if self.otherwise is None:
                        raise self._error(f"no edge for ({one}, {event})", fix="Add it, or give otherwise= a round.")
                    table[one.name, event] = self.otherwise
        return dict(sorted(table.items()))

    def _check_reachable(self) -> None:
        reached, ahead = {self.start.name}, [self.start.name]
        while ahead:
            here = ahead.pop()
            for (name, _), target in self.table.items():
                if name == here and target.name not in reached:
                    reached.add(target.name)
                    ahead.append(target.name)
        for name, one in self.rounds.items():
            if name not in reached:
                raise self._error(f"nothing leads to {name} ({one.where}): its edges are dead")

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


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _yaml_lines(spec: Mapping[str, Any]) -> typing.Iterator[str]:
    """The few shapes of a specification; every text in it is an identifier, so nothing needs quotes."""
    for key, value in spec.items():
        if isinstance(value, list) and value:
            yield f"{key}:\n"
            yield from (f"- {item}\n" for item in value)
        elif isinstance(value, dict) and value:
            yield f"{key}:\n"
            yield from (f"  {edge}: {target}\n" for edge, target in value.items())
        else:
            yield f"{key}: {value or ('[]' if isinstance(value, list) else '{}')}\n"
