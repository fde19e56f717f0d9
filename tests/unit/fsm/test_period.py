"""The replicated machine: which payloads count, when a round ends, and that all of it survives on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from quorate import (
    Address,
    Bps,
    ConfigError,
    Context,
    Outcome,
    Service,
    ServiceError,
    State,
    Votes,
    agree,
    choice,
    keep,
    same,
    with_deadline,
)
from quorate.fsm import Period, Settled, codec
from quorate.rounds import pause, register

A, B, C, D = MEMBERS = tuple(Address(name) for name in "ABCD")


@dataclass(frozen=True)
class Quote:
    price: Bps
    source: str | None = None


@dataclass(frozen=True)
class Market(State):
    quote: Quote = Quote(Bps(0))
    side: Literal["UP", "DOWN", "NONE"] = "NONE"
    seen: int = keep(0)


@agree(same("quote"), timeout_s=10)
async def look(ctx: Context, state: Market) -> Quote:
    return Quote(Bps(1))


@agree(choice("side", ("UP", "DOWN"), "NONE"), timeout_s=10)
async def decide(ctx: Context, state: Market) -> Literal["UP", "DOWN"]:
    return "UP"


def settle_never(state: Market, votes: Votes[int]) -> Outcome[Literal["DONE"], Market] | None:
    return None


@agree(settle_never)
async def stop(ctx: Context, state: Market) -> int:
    return 0


SERVICE = Service("market", state=Market, start=look, final=(stop,), transitions={
    (look, "DONE"): decide, (look, "NO_MAJORITY"): look, (look, "ROUND_TIMEOUT"): look,
    (decide, "DONE"): stop, (decide, "ROUND_TIMEOUT"): decide,
})  # fmt: skip

QUOTE = b'{"price":5,"source":null}'


def begin() -> Period:
    return Period.start(SERVICE, reversed(MEMBERS))


def told(period: Period, *payloads: bytes) -> Period:
    for sender, payload in zip(MEMBERS, payloads, strict=False):
        period = period.deliver(sender, period.sequence, payload)
    return period


def test_it_starts_with_sorted_members_in_the_first_round() -> None:
    period = begin()
    assert (period.members, period.round, period.sequence, period.clock_ms) == (MEMBERS, look, 1, 0)
    assert (period.n, period.quorum, period.missing()) == (4, 3, MEMBERS)
    assert period.state == Market()


@pytest.mark.parametrize("members", [(), (A, A)])
def test_members_are_needed_and_distinct(members: tuple[Address, ...]) -> None:
    with pytest.raises(ConfigError, match="the members of market"):
        Period.start(SERVICE, members)


def test_a_first_state_of_another_type_is_refused() -> None:
    with pytest.raises(ServiceError, match="no Market"):
        Period.start(SERVICE, MEMBERS, State())


def test_a_payload_counts_once() -> None:
    period = begin().deliver(A, 1, QUOTE)
    assert period.votes.items() == ((A, Quote(Bps(5))),)
    assert period.missing() == (B, C, D)
    assert period.deliver(A, 1, b'{"price":6,"source":null}') is period


@pytest.mark.parametrize(
    ("sender", "sequence", "payload", "why"),
    [
        (Address("E"), 1, QUOTE, "E is no member of market"),
        (B, 0, QUOTE, r"for round 0, but round 1 \(LookRound\)"),
        (B, 2, QUOTE, r"for round 2, but round 1"),
        (A, 1, QUOTE, "already sent"),
        (B, 1, b"5", "is no Quote"),
        (B, 1, b'{"price":5.0,"source":null}', "float"),
        (B, 1, b"", "not JSON"),
    ],
)
def test_a_payload_that_does_not_count_changes_nothing(
    sender: Address, sequence: int, payload: bytes, why: str
) -> None:
    period = begin().deliver(A, 1, QUOTE)
    assert period.deliver(sender, sequence, payload) is period
    refusal = period.refusal(sender, sequence, payload)
    assert refusal is not None
    assert why.replace("\\", "") in refusal


def test_a_payload_that_counts_is_not_refused() -> None:
    assert begin().refusal(A, 1, QUOTE) is None


def test_a_quorum_settles_the_round_and_opens_the_next() -> None:
    period, settled = told(begin(), QUOTE, QUOTE, QUOTE).end_block(1000)
    assert settled == Settled("LookRound", "DONE", 1)
    assert (period.round, period.sequence, len(period.votes), period.clock_ms) == (decide, 2, 0, 0)
    assert period.state == Market(quote=Quote(Bps(5)))


def test_the_clock_starts_at_the_block_after_the_one_that_opened_the_round() -> None:
    period, settled = begin().end_block(1_000)
    assert (settled, period.clock_ms, period.deadline_ms) == (None, 1_000, 11_000)
    period, settled = told(period, QUOTE, QUOTE, QUOTE).end_block(
        50_000
    )  # settled late: the rule comes before the deadline
    assert settled == Settled("LookRound", "DONE", 1)
    assert (period.clock_ms, period.deadline_ms) == (
        0,
        None,
    )  # the block's time may be old by a whole sleep: CometBFT trap 2
    period, settled = period.end_block(90_000)
    assert (settled, period.clock_ms) == (None, 90_000)


def test_a_round_times_out_at_its_deadline_and_not_before() -> None:
    period, _ = begin().end_block(1_000)
    period, settled = period.end_block(10_999)
    assert settled is None
    timed_out, settled = period.end_block(11_000)
    assert settled == Settled("LookRound", "ROUND_TIMEOUT", 1)
    assert (timed_out.round, timed_out.sequence, timed_out.state) == (look, 2, Market())


def test_payloads_of_the_round_before_do_not_count_after_a_timeout() -> None:
    period, _ = begin().end_block(1_000)
    period, _ = period.end_block(11_000)
    assert period.deliver(A, 1, QUOTE) is period


def test_a_rule_may_decide_at_its_deadline() -> None:
    period, _ = told(begin(), QUOTE, QUOTE, QUOTE).end_block(1)
    period, _ = told(period, b'"UP"', b'"UP"', b'"DOWN"').end_block(2_000)
    period, settled = period.end_block(12_000)
    assert settled == Settled("DecideRound", "DONE", 2)
    assert period.state.side == "NONE"  # type: ignore[attr-defined]


def test_too_few_payloads_at_the_deadline_are_a_timeout() -> None:
    period, _ = told(begin(), QUOTE, QUOTE, QUOTE).end_block(1)
    period, _ = told(period, b'"UP"', b'"UP"').end_block(2_000)
    period, settled = period.end_block(12_000)
    assert settled == Settled("DecideRound", "ROUND_TIMEOUT", 2)


def test_a_final_round_rests() -> None:
    period, _ = told(begin(), QUOTE, QUOTE, QUOTE).end_block(1)
    period, settled = told(period, b'"UP"', b'"UP"', b'"UP"').end_block(2)
    assert settled == Settled("DecideRound", "DONE", 2)
    assert period.is_final
    assert period.end_block(10**9) == (period, None)
    assert period.deadline_ms is None
    assert "final" in str(period.refusal(A, period.sequence, b"1"))


def test_the_period_survives_on_disk_with_its_votes() -> None:
    period, _ = told(begin(), QUOTE, b'{"price":6,"source":"x"}').end_block(7)
    again = Period.decode(SERVICE, period.encode())
    assert again == period
    assert again.digest() == period.digest()
    assert again.votes.get(B) == Quote(Bps(6), "x")


def test_everything_agreed_is_in_the_digest() -> None:
    period = told(begin(), QUOTE)
    changed: list[Any] = [
        replace(period, members=(*MEMBERS, Address("E"))),
        replace(period, round=decide, votes=Votes.of((), n=4)),
        replace(period, state=Market(seen=1)),
        replace(period, sequence=2),
        replace(period, votes=Votes.of((), n=4)),
        replace(period, votes=Votes.of([(B, Quote(Bps(5)))], n=4)),
        replace(period, votes=Votes.of([(A, Quote(Bps(6)))], n=4)),
        replace(period, clock_ms=1),
        replace(period, origin="x"),
    ]
    assert len({period.digest(), *(one.digest() for one in changed)}) == len(changed) + 1
    assert len(period.digest()) == 32


def test_another_services_or_versions_state_is_refused() -> None:
    other = Service(
        "market", state=Market, start=look, final=(stop,), transitions={(look, "DONE"): stop}, otherwise=look
    )
    with pytest.raises(ConfigError, match=f"written|{SERVICE.spec_hash[:12]}") as error:
        Period.decode(other, begin().encode())
    assert "version" in error.value.fix


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seen":0', b'"seen":"x"'),
        (b"\n[1,0", b"\n[null,0"),
        (b"LookRound", b"LossRound"),
        (b'["A"]', b"[]"),
        (b'["A"]', b""),
        (b"{", b""),
    ],
)
def test_a_damaged_file_is_a_config_error(old: bytes, new: bytes) -> None:
    data = told(begin(), QUOTE).encode()
    assert old in data
    with pytest.raises(ConfigError, match="damaged"):
        Period.decode(SERVICE, data.replace(old, new))


def settle_rogue(state: Market, votes: Votes[int]) -> Outcome[Literal["DONE"], Market] | None:
    return {0: None, 1: Outcome("OTHER", state), 2: Outcome("DONE", replace(state, seen="x"))}[len(votes)]  # type: ignore[arg-type,return-value]


@agree(settle_rogue)
async def rogue(ctx: Context, state: Market) -> int:
    return 0


ROGUE = Service("rogue", state=Market, start=rogue, transitions={(rogue, "DONE"): rogue}, otherwise=rogue)


def test_a_rule_that_answers_what_it_does_not_announce_stops_the_machine() -> None:
    with pytest.raises(ServiceError, match=r"RogueRound .* ended with OTHER, which its rule does not announce"):
        told(Period.start(ROGUE, MEMBERS), b"1").end_block(1)


def test_a_rule_that_puts_a_wrong_type_into_the_state_stops_the_machine() -> None:
    with pytest.raises(ServiceError, match=r"value\.seen is \"x\", expected int"):
        told(Period.start(ROGUE, MEMBERS), b"1", b"1").end_block(1)


LAPS = Service("laps", state=Market, start=register, otherwise=register, transitions={
    (register, "DONE"): look, (look, "DONE"): pause, (pause, "DONE"): look,
})  # fmt: skip


def test_register_binds_all_members_and_pause_keeps_what_is_declared() -> None:
    period, _ = Period.start(LAPS, MEMBERS, Market(seen=9)).end_block(1)
    period, settled = told(period, *(codec.encode(m) for m in MEMBERS[:3])).end_block(2)
    assert settled is None
    period = period.deliver(D, 1, b'"whatever it says"')
    period, settled = period.end_block(3)
    assert settled == Settled("RegisterRound", "DONE", 1)
    assert period.state.participants == MEMBERS
    period, _ = told(period, QUOTE, QUOTE, QUOTE).end_block(4)
    assert period.round is pause
    period, settled = told(period, b"0", b"0", b"0").end_block(5)
    assert settled == Settled("PauseRound", "DONE", 3)
    assert period.state == Market(participants=MEMBERS, period=1, seen=9)


def test_pause_without_majority_says_so() -> None:
    period = replace(Period.start(LAPS, MEMBERS), round=pause)
    assert told(period, b"0", b"1").end_block(1)[1] is None
    assert told(period, b"0", b"1", b"2").end_block(1)[1] == Settled("PauseRound", "NO_MAJORITY", 1)


def test_the_beacon_changes_with_chain_period_and_agreed_state_only() -> None:
    first = begin()
    assert first.beacon("c") == told(first, QUOTE).beacon("c") == told(first, QUOTE).end_block(1)[0].beacon("c")
    later = replace(first, state=first.state.next_period())
    numbers = [
        first.beacon("c"),
        first.beacon("d"),
        later.beacon("c"),
        Period.start(SERVICE, MEMBERS, Market(seen=1)).beacon("c"),
    ]
    assert len(set(numbers)) == 4
    assert all(0 <= number < 1 << 256 for number in numbers)


def test_the_beacon_is_pinned() -> None:
    """A changed beacon moves keepers of running services: a deliberate, named break."""
    assert hex(begin().beacon("chain"))[:12] == "0xdde48c1230"


def test_a_deadline_of_a_plain_rule_is_followed() -> None:
    def shout(state: Market, votes: Votes[int]) -> Outcome[Literal["LATE"], Market] | None:
        return Outcome("LATE", state)

    late = agree(with_deadline(settle_never, shout), timeout_s=1)(stop.act)
    service = Service("late", state=Market, start=late, transitions={(late, "LATE"): late}, otherwise=late)
    period, _ = Period.start(service, MEMBERS).end_block(1_000)
    assert period.end_block(2_000)[1] == Settled("StopRound", "LATE", 1)
