"""An interrupt leaves any round and comes back to it; what a round needs was set on every way to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import yaml

from quorate import (
    BACK,
    ROUND_TIMEOUT,
    Address,
    Bps,
    Context,
    Interrupt,
    Outcome,
    Service,
    ServiceError,
    State,
    Votes,
    agree,
    keep,
    only_keeper,
    same,
)
from quorate.fsm import Period, Settled
from quorate.rounds import pause

A, B, C, D = MEMBERS = tuple(Address(name) for name in "ABCD")
HERE = r"test_interrupts\.py:\d+"


@dataclass(frozen=True)
class Works(State):
    keeper: Address = Address("")
    price: Bps = Bps(0)
    offence: str = ""
    memory: str = keep("")


@agree(same("price"), timeout_s=5)
async def look(ctx: Context, state: Works) -> Bps:
    return Bps(1)


@agree(same("memory"), timeout_s=5)
async def note(ctx: Context, state: Works) -> str:
    return ""


@agree(same("memory"), timeout_s=5)
async def halted(ctx: Context, state: Works) -> str:
    return ""


def settle_punish(state: Works, votes: Votes[int]) -> Outcome[Literal["DONE"], Works] | None:
    return Outcome("DONE", replace(state, offence="")) if len(votes) >= votes.quorum else None


@agree(settle_punish, timeout_s=5)
async def punish(ctx: Context, state: Works) -> int:
    return 0


def settle_never(state: Works, votes: Votes[int]) -> Outcome[Literal["OVER"], Works] | None:
    return None


@agree(settle_never)
async def over(ctx: Context, state: Works) -> int:
    return 0


HALT = Interrupt("HALT", halted)
OFFENCE = Interrupt("OFFENCE", punish, when=lambda state: bool(state.offence))
END = Interrupt("END", over)
EDGES: dict[Any, Any] = {
    (look, "DONE"): note, (look, "NO_MAJORITY"): look, (look, ROUND_TIMEOUT): look,
    (note, "DONE"): look, (note, "NO_MAJORITY"): look, (note, ROUND_TIMEOUT): look,
    (halted, "DONE"): BACK, (halted, "NO_MAJORITY"): halted, (halted, ROUND_TIMEOUT): halted,
    (punish, "DONE"): BACK, (punish, ROUND_TIMEOUT): look,
}  # fmt: skip


def works(**changes: Any) -> Service:
    arguments: dict[str, Any] = {
        "name": "works", "state": Works, "start": look, "transitions": EDGES, "final": (over,),
        "interrupts": (HALT, OFFENCE, END),
    }  # fmt: skip
    return Service(**{**arguments, **changes})


SERVICE = works()


def begin(state: Works | None = None) -> Period:
    return Period.start(SERVICE, MEMBERS, state)


def told(period: Period, payload: bytes, count: int = 3) -> Period:
    for sender in MEMBERS[:count]:
        period = period.deliver(sender, period.sequence, payload)
    return period


def asked(period: Period, event: str, count: int = 3) -> Period:
    return told(period, period.ask(event), count)


def test_a_quorum_that_asks_interrupts_any_round_and_it_opens_anew_afterwards() -> None:
    period = told(begin(), b"7", 2)
    period, settled = asked(period, "HALT").end_block(1)
    assert settled == Settled("LookRound", "HALT", 1)
    assert (period.round, period.sequence, period.interrupted) == (halted, 2, (("HALT", "LookRound"),))
    period, settled = told(period, b'"resumed"').end_block(2)
    assert settled == Settled("HaltedRound", "DONE", 2)
    assert (period.round, period.sequence, len(period.votes), period.interrupted) == (look, 3, 0, ())
    assert period.state == Works(memory="resumed")


def test_f_liars_interrupt_nothing_and_each_counts_once() -> None:
    period = asked(asked(begin(), "HALT", 2), "HALT", 2)
    assert len(period.asks) == 2
    period, settled = period.end_block(1)
    assert (period.round, settled) == (look, None)


def test_an_ask_counts_beside_the_payload_and_stands_until_the_quorum_is_there() -> None:
    period, _ = told(asked(begin(), "HALT", 2), b"7").end_block(1)
    assert (period.round, len(period.asks)) == (note, 2)
    period, settled = period.deliver(D, 2, period.ask("HALT")).end_block(2)
    assert settled == Settled("NoteRound", "HALT", 2)
    assert (period.asks, period.interrupted) == ((), (("HALT", "NoteRound"),))


def test_a_round_that_ends_in_the_same_block_ends_first() -> None:
    period, settled = asked(told(begin(), b"7"), "HALT").end_block(1)
    assert settled == Settled("LookRound", "DONE", 1)
    assert (period.round, period.interrupted) == (halted, (("HALT", "NoteRound"),))


def test_an_agreed_state_may_interrupt_by_itself() -> None:
    period, _ = told(begin(Works(offence="late")), b"7").end_block(1)
    assert (period.round, period.interrupted) == (punish, (("OFFENCE", "NoteRound"),))
    period, _ = told(period, b"1").end_block(2)
    assert (period.round, period.state.offence) == (note, "")  # type: ignore[attr-defined]


def test_interrupts_nest_and_come_back_in_order() -> None:
    period, _ = asked(begin(Works(offence="late")), "HALT").end_block(1)
    assert [event for event, _ in period.interrupted] == ["HALT"]
    period, _ = told(period, b'"x"').end_block(2)
    assert (period.round, period.interrupted) == (punish, (("OFFENCE", "LookRound"),))
    period, _ = asked(period, "HALT").end_block(3)
    assert period.interrupted == (("OFFENCE", "LookRound"), ("HALT", "PunishRound"))
    assert Period.decode(SERVICE, period.encode()) == period
    period, _ = told(period, b'"y"').end_block(4)
    assert (period.round, period.interrupted) == (punish, (("OFFENCE", "LookRound"),))
    period, _ = told(period, b"1").end_block(5)
    assert (period.round, period.interrupted) == (look, ())


def test_an_edge_to_an_ordinary_round_ends_the_interrupt_for_good() -> None:
    period, _ = told(begin(Works(offence="late")), b"7").end_block(1)
    period, _ = period.end_block(2)
    period, settled = period.end_block(10_000)
    assert settled == Settled("PunishRound", ROUND_TIMEOUT, 2)
    assert period.round is punish  # the offence still stands, so it interrupts again
    assert period.interrupted == (("OFFENCE", "LookRound"),)


def test_a_service_can_be_asked_to_rest() -> None:
    period, _ = asked(begin(), "END").end_block(1)
    assert period.is_final
    assert "final" in str(period.refusal(A, period.sequence, period.ask("HALT")))


@pytest.mark.parametrize(
    ("payload", "why"), [(b"!HAL", "asks for an interrupt that works has not"), (b"!HALT", "has asked for it")]
)
def test_an_ask_that_does_not_count_changes_nothing(payload: bytes, why: str) -> None:
    period = asked(begin(), "HALT", 1)
    assert period.deliver(A, 1, payload) is period
    assert why in str(period.refusal(A, 1, payload))


def test_an_interrupt_that_goes_on_cannot_be_asked_for() -> None:
    period, _ = asked(begin(), "HALT").end_block(1)
    assert "HALT is going on" in str(period.refusal(D, 2, b"!HALT"))


def test_asks_do_not_cross_a_period() -> None:
    service = works(transitions={**EDGES, (note, "DONE"): pause, (pause, "DONE"): look}, otherwise=look)
    period = replace(Period.start(service, MEMBERS), round=pause)
    period, _ = told(asked(period, "HALT", 2), b"0").end_block(1)
    assert (period.state.period, period.asks) == (1, ())


def test_the_specification_shows_interrupts_and_reads_back() -> None:
    spec = SERVICE.spec()
    assert spec["transition_func"]["(LookRound, HALT)"] == "HaltedRound"
    assert spec["transition_func"]["(HaltedRound, DONE)"] == "InterruptedRound"
    assert "InterruptedRound" in spec["states"]
    assert yaml.safe_load(SERVICE.spec_yaml()) == spec
    assert SERVICE.main == {"LookRound", "NoteRound"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"interrupts": (HALT, Interrupt("HALT", punish), END)}, r"of the interrupts \['END', 'HALT'\]"),
        ({"interrupts": (HALT, Interrupt("DONE", punish), END)}, "has the event of another, or of a round"),
        ({"interrupts": (HALT, END)}, rf"nothing leads to PunishRound \(.*{HERE}\)"),
        ({"transitions": {**EDGES, (note, "DONE"): BACK}}, rf"NoteRound \(.*{HERE}\) leads BACK with DONE"),
        (
            {"transitions": {**EDGES, (halted, "DONE"): pause, (pause, "DONE"): BACK, (pause, "NO_MAJORITY"): pause,
                             (pause, ROUND_TIMEOUT): pause}},
            r"PauseRound .* ends the period inside an interrupt",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_an_interrupt_says_where(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ServiceError, match=rf"service works \(.*{HERE}\): .*{why}"):
        works(**changes)


@agree(only_keeper("memory"), timeout_s=5)
async def speak(ctx: Context, state: Works) -> str:
    return ""


@agree(same("keeper"), timeout_s=5)
async def elect(ctx: Context, state: Works) -> Address:
    return ctx.me


@agree(settle_punish, needs=("price",))
async def buy(ctx: Context, state: Works) -> int:
    return 0


def line(*edges: tuple[Any, str, Any], start: Any, otherwise: Any, **more: Any) -> Service:
    table = {(source, event): target for source, event, target in edges}
    return Service("line", state=Works, start=start, transitions=table, otherwise=otherwise, **more)


def test_a_field_that_is_set_on_every_way_satisfies() -> None:
    line((elect, "DONE", speak), (speak, "DONE", elect), start=elect, otherwise=elect)
    line((look, "DONE", buy), (buy, "DONE", pause), (pause, "DONE", look), start=look, otherwise=look)


def test_a_field_that_no_earlier_round_sets_on_some_path_is_an_error_that_shows_the_path() -> None:
    with pytest.raises(ServiceError, match=rf"SpeakRound \(.*{HERE}\) needs the field 'keeper'.* SpeakRound$"):
        line((speak, "DONE", elect), (elect, "DONE", speak), start=speak, otherwise=elect)
    with pytest.raises(ServiceError, match=r"'keeper'.*on the way ElectRound -> LookRound -> SpeakRound") as error:
        line((elect, "DONE", speak), (look, "DONE", speak), (speak, "DONE", elect), start=elect, otherwise=look)
    assert "sets=" in error.value.fix


def test_a_new_period_begins_with_empty_fields_again() -> None:
    with pytest.raises(ServiceError, match=r"BuyRound .*needs the field 'price'.*on the way BuyRound"):
        line((look, "DONE", buy), (buy, "DONE", pause), (pause, "DONE", buy), start=look, otherwise=look)
    needy = agree(settle_punish, needs=("memory",))(buy.act)  # kept across the period
    line((note, "DONE", needy), (needy, "DONE", pause), (pause, "DONE", needy), start=note, otherwise=note)


def test_an_interrupt_may_come_before_anything_is_set() -> None:
    edges = {(look, "DONE"): look, (buy, "DONE"): BACK}
    with pytest.raises(ServiceError, match=r"BuyRound .*on the way LookRound -> BuyRound"):
        works(transitions=edges, otherwise=look, final=(), interrupts=(Interrupt("BUY", buy),))


def test_a_rule_of_ones_own_declares_what_it_sets() -> None:
    mine = agree(settle_punish, sets={"DONE": ("price",)})(punish.act)
    line((mine, "DONE", buy), (buy, "DONE", mine), start=mine, otherwise=mine)
    with pytest.raises(ServiceError, match=rf"PunishRound \(.*{HERE}\) never ends with \['DUNE'\]"):
        agree(settle_punish, sets={"DUNE": ("price",)})(punish.act)
    wrong = agree(settle_punish, sets={"DONE": ("prize",)})(punish.act)
    with pytest.raises(ServiceError, match="uses the field 'prize'"):
        line((wrong, "DONE", wrong), start=wrong, otherwise=wrong)


def test_a_default_that_is_not_empty_counts_as_set() -> None:
    @dataclass(frozen=True)
    class Run(Works):
        keeper: Address = A

    Service("run", state=Run, start=speak, transitions={(speak, "DONE"): speak}, otherwise=speak)
