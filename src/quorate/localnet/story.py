"""What the events of a run amount to: lines that stay, and what is the case now. Pure; view.py draws it.

Four agents report the same round, transaction and model answer; the story tells each of them once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from quorate.events import Event

__all__ = ["Line", "Member", "Story", "Tone", "duration", "short"]

ONE_TOKEN = 10**18
_SHOWN_HEX = 12  # longer hexadecimal strings are shortened


class Tone(Enum):
    """How a line is meant; the view gives each a colour and a sign."""

    PLAIN = "plain"
    DONE = "done"
    WORKING = "working"
    WAITING = "waiting"
    BAD = "bad"


@dataclass(frozen=True)
class Line:
    """One thing that has happened, told for good: when (seconds since the start), about whom, and what."""

    at_s: float
    subject: str
    text: str
    tone: Tone = Tone.PLAIN


@dataclass
class Member:
    """What one agent or operator is doing."""

    doing: str = "starts"
    tone: Tone = Tone.WORKING
    since: float = 0.0
    answers: int = 0


@dataclass
class _Round:
    name: str
    since: float
    acts: dict[str, str] = field(default_factory=dict)
    is_settled: bool = False


class Story:
    """Takes events in the order of time; `add` returns the lines that each is worth, `agents` and the rest say what is.

    `names` are the names of addresses; an event with an `address` field teaches the name of its `who`.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = {address.lower(): name for address, name in (names or {}).items()}
        self.agents: dict[str, Member] = {}
        self.operators: dict[str, Member] = {}
        self.round = ""
        self.sequence = 0
        self.step = ""
        self.waiting = ""
        self.round_ms: dict[str, list[float]] = {}
        self.period = 0
        self.start: float | None = None
        self.now = 0.0
        self._rounds: dict[int, _Round] = {}
        self._acting: dict[str, int] = {}
        self._waiting_in = 0
        self._told: set[tuple[str, ...]] = set()
        self._handlers: dict[str, Callable[[Event], list[Line]]] = {
            "ready": self._ready,
            "round": self._round,
            "act": self._act,
            "payload": self._payload,
            "settled": self._settled,
            "asking": self._ask,
            "model": self._model,
            "refused": self._refused,
            "signed": self._signed,
            "sent": self._sent,
            "mined": self._mined,
            "starting": self._starting,
            "models": self._models,
            "registered": self._registered,
            "stopped": self._stopped,
            "waiting": self._waiting,
            "down": self._down,
            "left": self._left,
            "step": self._step,
            "offence": self._offence,
            "note": self._note,
            "error": self._error,
        }

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first event to the latest, or to what `pass_time` was told."""
        return self.now - self.start if self.start is not None else 0.0

    def add(self, event: Event) -> list[Line]:
        """Take one event; return what there is to tell for good."""
        if self.start is None:
            self.start = event.t
        self.now = max(self.now, event.t)
        address = event.get("address")
        if address:
            self.names[str(address).lower()] = event.who
        handler = self._handlers.get(event.kind)
        return handler(event) if handler else [self._line(event, f"{event.kind} {event.fields or ''}".strip())]

    def pass_time(self, now: float) -> None:
        """Tell the story that it is `now`: clocks in the view go on between events."""
        if self.start is not None:
            self.now = max(self.now, now)

    def name(self, who: object) -> str:
        """The name of an address, or its short form."""
        return self.names.get(str(who).lower(), short(str(who)))

    def _ready(self, event: Event) -> list[Line]:
        was_down = event.who in self.agents and self.agents[event.who].tone is Tone.BAD
        if _is_agent(event.who):
            self._set(event, "is ready", Tone.DONE)
            return [self._line(event, "is back", Tone.DONE), *self._quorum()] if was_down else []
        models = event.get("models", ())
        serves = f" and serves {', '.join(map(str, models))}" if models else ""
        if _is_operator(event.who):
            self._set(event, f"is ready{serves}", Tone.DONE)
        return [self._line(event, f"is ready{serves}", Tone.DONE)]

    def _round(self, event: Event) -> list[Line]:
        sequence, name = int(event.get("sequence", 0)), _round_name(event)
        if sequence >= self.sequence:
            self.sequence, self.round, self.period = sequence, name, int(event.get("period", 0))
        self._rounds.setdefault(sequence, _Round(name, event.t))
        if _is_agent(event.who):
            self._set(event, f"is in {name}", Tone.WORKING)
        return []

    def _act(self, event: Event) -> list[Line]:
        self._acting[event.who] = int(event.get("sequence", self.sequence))
        self._set(event, f"works on {_round_name(event)}", Tone.WORKING)
        return []

    def _payload(self, event: Event) -> list[Line]:
        name, ms = (
            _round_name(event),
            event.get("ms", None),
        )  # no ms: the part was done before the agent was started anew
        took = "" if ms is None else duration(ms)
        self._set(event, f"has handed in its part of {name}" + (f" after {took}" if took else ""), Tone.DONE)
        sequence = int(event.get("sequence", self.sequence))
        self._rounds.setdefault(sequence, _Round(name, event.t)).acts.setdefault(event.who, took)
        return []

    def _settled(self, event: Event) -> list[Line]:
        sequence = int(event.get("sequence", 0))
        round_ = self._rounds.setdefault(sequence, _Round(_round_name(event), event.t))
        if sequence >= self._waiting_in and self._has_quorum():  # an agent may wait in the next round already
            self.waiting = ""
        if round_.is_settled:
            return []
        round_.is_settled = True
        ms = event.get("ms", None)  # an agent that came late to the round does not know
        ms = 1000 * (event.t - round_.since) if ms is None else float(ms)
        self.round_ms.setdefault(round_.name, []).append(ms)
        text = f"{event.get('event')} in {duration(ms)}{self._acts(round_)}"
        line = Line(self.elapsed_s, round_.name, text, Tone.DONE)
        for old in [key for key in self._rounds if key < sequence - 16]:
            del self._rounds[old]
        return [line]

    def _acts(self, round_: _Round) -> str:
        """How long each agent's act took, in the order of their names; `–` for one that had not handed in."""
        took = [round_.acts.get(name, "") or "–" for name in sorted(self.agents)]
        if not any(round_.acts.values()):
            return ""
        return f" (acts {took[0]} each)" if len(set(took)) == 1 and len(took) > 1 else f" (acts {', '.join(took)})"

    def _ask(self, event: Event) -> list[Line]:
        self._set(event, f"asks {self.name(event.get('operator'))} ({event.get('model')})", Tone.WORKING)
        return []

    def _model(self, event: Event) -> list[Line]:
        operator, model = self.name(event.get("operator")), str(event.get("model"))
        self._set(event, f"has heard {operator} ({model})", Tone.WORKING)
        if operator in self.operators:
            served = self._set(replace(event, who=operator), "", Tone.DONE)
            served.answers += 1
            answers = f"{served.answers} answer{'s' if served.answers > 1 else ''}"
            served.doing = f"has given {answers}, the last to {event.who} ({model})"
        text = " ".join(str(event.get("text")).split())
        receipt = "receipt holds" if event.get("receipt_ok", False) else "RECEIPT DOES NOT HOLD"
        weight = f"weight {int(event.get('weight_bps', 0)) / 100:g} %"
        took = [duration(event.get("ms"))] if event.get("ms", None) is not None else []
        said = f"{model}: “{text}” ({', '.join([*took, receipt, weight])})"
        tone = Tone.PLAIN if event.get("receipt_ok", False) else Tone.BAD
        return self._once(("model", operator, model, text), Line(self.elapsed_s, operator, said, tone))

    def _refused(self, event: Event) -> list[Line]:
        reason = str(event.get("reason"))
        if not event.get("operator"):
            return self._once(("refused", reason), self._line(event, f"counts no answer: {reason}", Tone.WAITING))
        operator = self.name(event.get("operator"))
        return [Line(self.elapsed_s, operator, f"is not counted by {event.who}: {reason}", Tone.WAITING)]

    def _signed(self, event: Event) -> list[Line]:
        self._set(event, f"has signed {event.get('what')}", Tone.DONE)
        digest = str(event.get("digest"))
        line = self._line(event, f"signs {event.get('what')} {short(digest)}".rstrip())
        return self._once(("signed", event.who, digest), line)

    def _sent(self, event: Event) -> list[Line]:
        keeper = self.name(event.get("keeper", event.who))
        tx = str(event.get("tx"))
        return self._once(("sent", tx), Line(self.elapsed_s, keeper, f"sends transaction {short(tx)}"))

    def _mined(self, event: Event) -> list[Line]:
        tx = str(event.get("tx"))
        text = f"transaction {short(tx)} in block {event.get('block')}, {int(event.get('gas', 0)):,} gas"
        return self._once(("mined", tx), Line(self.elapsed_s, "chain", text, Tone.DONE))

    def _registered(self, event: Event) -> list[Line]:
        self.names[str(event.get("operator")).lower()] = event.who
        stake = f"{int(event.get('stake', 0)) // ONE_TOKEN:,} tokens"
        self._set(event, f"has a stake of {stake}", Tone.WORKING)
        return [self._line(event, f"is registered with a stake of {stake}", Tone.DONE)]

    def _starting(self, event: Event) -> list[Line]:
        self._set(event, f"loads {', '.join(map(str, event.get('models', ())))}", Tone.WORKING)
        return []

    def _models(self, event: Event) -> list[Line]:
        self._set(event, "registers", Tone.WORKING)
        return [self._line(event, f"has loaded its models in {duration(1000 * float(event.get('seconds', 0)))}")]

    def _stopped(self, event: Event) -> list[Line]:
        return []

    def _waiting(self, event: Event) -> list[Line]:
        reason = ": ".join(str(event.get(name)) for name in ("for", "reason") if event.get(name))
        if reason == self.waiting or not self._has_quorum():  # without a quorum nothing else is worth waiting for
            return []
        self._waiting_in = self._acting.get(event.who, 0)
        self.waiting = reason
        return [Line(self.elapsed_s, "waiting", reason, Tone.WAITING)]

    def _down(self, event: Event) -> list[Line]:
        text = f"is down: {event.get('how')}" if event.get("how") else "is down"
        if event.get("again_s"):
            text += f"; it is started again in {float(event.get('again_s')):g} s"
        self._set(event, "is down", Tone.BAD)
        return [self._line(event, text, Tone.BAD), *(self._quorum() if _is_agent(event.who) else ())]

    def _left(self, event: Event) -> list[Line]:
        self.agents.pop(event.who, None)  # nobody waits for it any more
        return [self._line(event, "has left the service")]

    def _quorum(self) -> list[Line]:
        """What is waited for where too few agents are left to go on."""
        if self._has_quorum():
            self.waiting = ""
            return []
        self._waiting_in = 0
        self.waiting = f"{self._up()} of {len(self.agents)} agents answer; {self._needed()} are needed"
        return [Line(self.elapsed_s, "waiting", self.waiting, Tone.WAITING)]

    def _up(self) -> int:
        return sum(agent.tone is not Tone.BAD for agent in self.agents.values())

    def _needed(self) -> int:
        """More than two thirds."""
        return 2 * len(self.agents) // 3 + 1

    def _has_quorum(self) -> bool:
        return not self.agents or self._up() >= self._needed()

    def _step(self, event: Event) -> list[Line]:
        text = str(event.get("text"))
        if not event.get("done", False):
            self.step = text
            return []
        self.step = "" if self.step == text else self.step
        took = duration(1000 * float(event.get("s", 0)))
        return [Line(self.elapsed_s, event.who, f"{text} ({took})", Tone.DONE)]

    def _offence(self, event: Event) -> list[Line]:
        what, sequence = str(event.get("what")), event.get("sequence")
        text = f"is on record for {what} in round {sequence}"
        line = Line(self.elapsed_s, self.name(event.get("member")), text, Tone.BAD)
        return self._once(("offence", str(event.get("member")), what, str(sequence)), line)

    def _note(self, event: Event) -> list[Line]:
        return [self._line(event, str(event.get("text")))]

    def _error(self, event: Event) -> list[Line]:
        text = "; ".join(str(event.get(name)) for name in ("message", "fix") if event.get(name))
        return [self._line(event, text, Tone.BAD)]

    def _set(self, event: Event, doing: str, tone: Tone) -> Member:
        members = self.operators if _is_operator(event.who) else self.agents
        member = members.setdefault(event.who, Member())
        member.doing, member.tone, member.since = doing, tone, event.t
        return member

    def _line(self, event: Event, text: str, tone: Tone = Tone.PLAIN) -> Line:
        return Line(self.elapsed_s, event.who, text, tone)

    def _once(self, key: tuple[str, ...], line: Line) -> list[Line]:
        if key in self._told:
            return []
        self._told.add(key)
        return [line]


def duration(ms: float) -> str:
    """Milliseconds in the unit that a person reads best: `41 ms`, `14.2 s`, `3:05 min`."""
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 99_950:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes}:{seconds:02} min"


def short(text: str) -> str:
    """A long hexadecimal string by its ends, as explorers show it; any other text as it is."""
    if text.startswith("0x") and len(text) > _SHOWN_HEX:
        return f"{text[:6]}…{text[-4:]}"
    return text


def _round_name(event: Event) -> str:
    """The round as its function is called: `read_proposal` for the specification's ReadProposalRound."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(event.get("round"))).lower()
    return name.removesuffix("_round") or name


def _is_operator(who: str) -> bool:
    return who.startswith("operator")


def _is_agent(who: str) -> bool:
    return who.startswith("agent")
