"""The record of offences: what goes in once, what it forgets, and how a service sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.fsm import BACK, Context, Interrupt, Outcome, Period, Service, Votes, agree, codec
from quorate.offences import MAX_AGE, MAX_COUNTS, MAX_LATEST, Offence, Offences, Watched, charge, informed, taken_back
from quorate.rounds import same
from quorate.units import Address, Hash, Height, PeriodNumber, RoundNumber

A, B = Address("0xA"), Address("0xB")
DIGEST = Hash("0x" + "11" * 32)


def _offence(member: Address = A, sequence: int = 7, height: int = 9) -> Offence:
    return Offence("equivocation", member, Height(height), RoundNumber(sequence), PeriodNumber(0), DIGEST)


def test_an_offence_reads_as_a_person_would_say_it() -> None:
    assert str(_offence()) == "0xA: equivocation in round 7"


def test_the_record_counts_what_it_no_longer_keeps() -> None:
    record = Offences()
    for sequence in range(1, 8):
        record = record.plus(_offence(sequence=sequence))
    assert [one.sequence for one in record.of(A)] == [4, 5, 6, 7]
    assert record.count("equivocation", A) == 7
    assert record.count("downtime", A) == record.count("equivocation", B) == 0


@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from(("equivocation", "downtime"))), max_size=400))
def test_however_many_offend_the_record_stays_small_and_reads_back(deeds: list[tuple[int, str]]) -> None:
    record = Offences()
    for who, kind in deeds:
        record = record.plus(replace(_offence(Address(f"0x{who:040x}")), kind=kind))  # type: ignore[arg-type]  # a Literal
    assert len(record.latest) <= MAX_LATEST
    assert len(record.counts) <= MAX_COUNTS
    assert codec.decode(Offences, codec.encode(record)) == record


@pytest.mark.parametrize(
    ("sequence", "now", "why"),
    [
        (7, 8, "is on record"),
        (8, 8, None),
        (1, 1001, None),
        (1, 1002, "too old"),
    ],
)
def test_a_proof_is_refused_when_it_is_known_or_too_old(sequence: int, now: int, why: str | None) -> None:
    said = Offences().plus(_offence(sequence=7)).why_not("equivocation", A, sequence, now)
    assert (said is None) if why is None else why in (said or "")


def test_who_offends_again_and_again_is_recorded_four_times_in_a_thousand_rounds() -> None:
    """Else an agent that has nothing to lose keeps the chain awake with proofs against itself."""
    record = Offences()
    for sequence in range(1, 5):
        assert record.why_not("equivocation", A, sequence, 5) is None
        record = record.plus(_offence(sequence=sequence))
    assert "that is enough" in (record.why_not("equivocation", A, 5, 5) or "")
    assert record.why_not("equivocation", B, 5, 5) is None
    assert record.why_not("equivocation", A, MAX_AGE + 2, MAX_AGE + 2) is None


@dataclass(frozen=True)
class Seen(Watched):
    """A service that looks at the record."""

    word: str = ""


def _blame(state: Seen, votes: Votes[str]) -> Outcome[str, Seen] | None:
    return Outcome("DONE", charge(state, "not revealing", B, DIGEST)) if len(votes) == votes.n else None


@agree(same("word"), timeout_s=5)
async def speak(ctx: Context, state: Seen) -> str:
    return "hello"


@agree(same("word"), timeout_s=5)
async def look_into(ctx: Context, state: Seen) -> str:
    return "seen"


service = Service(
    "seen",
    state=Seen,
    start=speak,
    otherwise=speak,
    interrupts=(Interrupt("OFFENCE", look_into, when=lambda state: len(state.offences.latest) > 0),),
    transitions={(speak, "DONE"): speak, (look_into, "DONE"): BACK},
)


def test_an_interrupt_is_taken_as_soon_as_the_record_has_news() -> None:
    period = Period.start(service, [A, B])
    for who in (A, B):
        period = period.deliver(who, 1, b'"hello"')
    record = Offences().plus(_offence())
    assert period.end_block(1)[0].round is speak
    after, settled = informed(period, record).end_block(1)
    assert settled is not None
    assert (after.round, after.state.offences) == (look_into, record)  # type: ignore[attr-defined]  # Seen


def test_what_a_rule_charges_gets_its_block_and_round_and_nothing_it_takes_out_is_forgotten() -> None:
    period = Period.start(service, [A, B])
    known = Offences().plus(_offence())
    forgetful = replace(period, state=charge(Seen(), "downtime", B, DIGEST))
    after, record = taken_back(forgetful, known, Height(12), RoundNumber(5))
    assert record == known.plus(Offence("downtime", B, Height(12), RoundNumber(5), PeriodNumber(0), DIGEST))
    assert after.state.offences == record  # type: ignore[attr-defined]  # Seen


def test_a_service_that_does_not_watch_is_left_alone() -> None:
    from tests.chain_of_agents.services import counting

    period = Period.start(counting, [A, B])
    assert informed(period, Offences().plus(_offence())) is period
    assert charge(period.state, "downtime", B, DIGEST) is period.state
