"""What must hold for every value, order and liar."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate import (
    BACK,
    Address,
    Bps,
    Context,
    Interrupt,
    PeerError,
    Service,
    State,
    Votes,
    agree,
    choice,
    each,
    keep,
    same,
)  # fmt: skip
from quorate.fsm import Period, codec
from quorate.rounds import pause, register

MEMBERS = tuple(Address(f"0x{i}") for i in range(7))
SIDES = ("FOR", "AGAINST", "ABSTAIN")


@dataclass(frozen=True)
class Opinion:
    support: Literal["FOR", "AGAINST", "ABSTAIN"]
    weight: Bps
    notes: tuple[str, ...] = ()
    by_source: dict[str, int | None] | None = None


@dataclass(frozen=True)
class Delegate(State):
    support: Literal["FOR", "AGAINST", "ABSTAIN"] = "ABSTAIN"
    opinions: tuple[tuple[Address, Opinion], ...] = ()
    agreed: Opinion | None = None
    cast: int = keep(0)


@agree(choice("support", SIDES, "ABSTAIN", by="support", keep="opinions"), timeout_s=5)
async def judge(ctx: Context, state: Delegate) -> Opinion:
    return Opinion("FOR", Bps(1))


@agree(same("agreed"), timeout_s=5)
async def confirm(ctx: Context, state: Delegate) -> Opinion:
    return Opinion("FOR", Bps(1))


@agree(each("opinions"), timeout_s=5)
async def gather(ctx: Context, state: Delegate) -> Opinion:
    return Opinion("FOR", Bps(1))


@agree(same("agreed"), timeout_s=5)
async def halted(ctx: Context, state: Delegate) -> Opinion:
    return Opinion("FOR", Bps(1))


HALT = Interrupt("HALT", halted)
SERVICE = Service("delegate", state=Delegate, start=judge, otherwise=judge, interrupts=(HALT,), transitions={
    (halted, "DONE"): BACK, (halted, "NO_MAJORITY"): BACK, (halted, "ROUND_TIMEOUT"): BACK,
    (judge, "DONE"): confirm, (confirm, "DONE"): gather, (gather, "DONE"): pause, (pause, "DONE"): register,
    (register, "DONE"): judge,
})  # fmt: skip

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ints = st.integers(-(1 << 1024) + 1, (1 << 1024) - 1)
opinions = st.builds(
    Opinion,
    st.sampled_from(SIDES),
    ints,
    st.lists(texts, max_size=3).map(tuple),
    st.none() | st.dictionaries(texts, st.none() | ints, max_size=3),
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(opinions)
def test_encoding_and_decoding_gives_the_value_back(opinion: Opinion) -> None:
    data = codec.encode(opinion)
    assert codec.decode(Opinion, data) == opinion
    assert codec.encode(codec.decode(Opinion, data)) == data


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused_or_are_the_one_encoding(data: bytes) -> None:
    for hint in (Opinion, int, str, tuple[str, ...], dict[str, int], int | None):
        try:
            value = codec.decode(hint, data)
        except PeerError:
            continue
        assert codec.encode(value) == data


@given(opinions, st.data())
def test_one_changed_byte_is_refused_or_another_value(opinion: Opinion, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(opinion))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(PeerError):
        assert codec.decode(Opinion, bytes(encoded)) != opinion


payloads = st.one_of(opinions.map(codec.encode), st.binary(max_size=10), st.just(b"!HALT"))
steps = st.one_of(
    st.tuples(st.just("deliver"), st.sampled_from([*MEMBERS, Address("0xstranger")]), st.integers(-1, 1), payloads),
    st.tuples(st.just("block"), st.integers(1, 4_000), st.just(0), st.just(b"")),
)


def run(story: list[Any], n: int, restart: bool) -> Period:
    """The period after a story; with `restart`, from disk before every step."""
    period, now = Period.start(SERVICE, MEMBERS[:n]), 1_000
    for kind, who, offset, payload in story:
        if restart:
            period = Period.decode(SERVICE, period.encode())
        if kind == "deliver":
            period = period.deliver(who, period.sequence + offset, payload)
        else:
            now += who
            period, _ = period.end_block(now)
    return period


@given(st.lists(steps, max_size=40), st.integers(1, 7))
def test_a_restart_before_every_step_changes_nothing(story: list[Any], n: int) -> None:
    through, restarted = run(story, n, restart=False), run(story, n, restart=True)
    assert through == restarted
    assert through.digest() == restarted.digest()


@given(st.lists(st.sampled_from(["told", "asked", "late"]), max_size=30))
def test_every_interrupt_comes_back_to_where_it_came_from(story: list[str]) -> None:
    period, now, left = Period.start(SERVICE, MEMBERS), 1_000, list[str]()
    for what in story:
        before, now = period, now + 10_000
        for sender in MEMBERS[:5] if what != "late" else ():
            body = period.ask("HALT") if what == "asked" else codec.encode(Opinion("FOR", Bps(1)))
            period = period.deliver(sender, period.sequence, body)
        period, _ = period.end_block(now)
        if before.round is halted and period.round is not halted:
            assert period.round.name == left.pop()
        elif period.round is halted and before.round is not halted:
            left.append(period.interrupted[0][1])
        assert len(period.interrupted) == len(left) <= 1


@given(
    st.permutations(MEMBERS), st.lists(opinions, min_size=7, max_size=7), st.integers(0, 7), st.permutations(MEMBERS)
)
def test_the_order_of_delivery_never_changes_the_digest(
    order: list[Address], sent: list[Opinion], count: int, other: list[Address]
) -> None:
    by_sender = dict(zip(MEMBERS, sent, strict=True))
    present = set(order[:count])
    ends = []
    for way in (order, other):
        period = Period.start(SERVICE, MEMBERS)
        for sender in way:
            if sender in present:
                period = period.deliver(sender, 1, codec.encode(by_sender[sender]))
        ends.append(period.end_block(5)[0].digest())
    assert ends[0] == ends[1]


@given(st.integers(1, 10).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, 2), max_size=n))))
def test_same_ends_exactly_when_what_comes_later_cannot_matter(case: tuple[int, list[int]]) -> None:
    n, sent = case
    votes = Votes.of(((Address(f"{i:02}"), value) for i, value in enumerate(sent)), n=n)
    best = max((sent.count(value) for value in sent), default=0)
    assert (votes.same() is not None) == (best >= votes.quorum)
    assert votes.split() == (best + n - len(sent) < votes.quorum)
    assert not (votes.agreed() and votes.split())


@given(st.integers(1, 10), st.data())
def test_fewer_than_a_third_of_liars_never_choose_an_option(n: int, data: st.DataObject) -> None:
    """An option that no honest agent chose cannot win, whatever f liars send and whoever stays silent."""
    f = (n - 1) // 3
    honest = data.draw(st.lists(st.sampled_from(["FOR", "ABSTAIN"]), max_size=n - f))
    lies = data.draw(st.lists(st.sampled_from(SIDES), max_size=f))
    ballots = [Opinion(side, Bps(0)) for side in [*honest, *lies]]  # type: ignore[arg-type]
    votes = Votes.of(((Address(f"{i:02}"), ballot) for i, ballot in enumerate(ballots)), n=n)
    outcome = judge.settle(Delegate(), votes)
    if outcome is not None:
        assert outcome.state.support != "AGAINST"
        assert outcome.state.support in ("ABSTAIN", *honest)


@given(st.lists(st.sampled_from(SIDES), max_size=7))
def test_a_votes_outcome_never_depends_on_how_long_one_waits_for_it(sides: list[str]) -> None:
    """If a vote ends early, the full set of ballots gives the same option: leaving out the last gains nothing."""
    ballots = [(member, Opinion(side, Bps(0))) for member, side in zip(MEMBERS, sides, strict=False)]  # type: ignore[arg-type]
    ends = [judge.settle(Delegate(), Votes.of(ballots[:k], n=7)) for k in range(len(ballots) + 1)]
    chosen = [end.state.support for end in ends if end is not None]
    assert len(set(chosen)) <= 1


def test_votes_in_arrival_order_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: without the sort, two orders of delivery give two digests, which the order test above compares."""
    monkeypatch.setattr(Votes, "plus", lambda votes, who, what, _: replace(votes, pairs=(*votes.pairs, (who, what))))
    ends = set()
    for way in (MEMBERS, MEMBERS[::-1]):
        period = Period.start(SERVICE, MEMBERS)
        for sender in way:
            period = period.deliver(sender, 1, codec.encode(Opinion("FOR", Bps(1))))
        ends.add(period.end_block(5)[0].digest())
    assert len(ends) == 2
