"""Sealed rounds: nobody copies, whoever does not reveal is named, a restart still reveals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from quorate import ROUND_TIMEOUT, Address, Bps, Context, Hash, Outcome, Service, ServiceError, State, Votes
from quorate.fsm import Period, codec
from quorate.offences import Watched
from quorate.rounds import SealedContext, draw, lot_of, pause, register, sealed
from quorate.rounds.sealed import commitment_to
from quorate.testing import Network

A, B, C, D = MEMBERS = tuple(Address(name) for name in "ABCD")


@dataclass(frozen=True)
class Market(State):
    forecasts: tuple[tuple[Address, Bps], ...] = ()
    commitments: tuple[tuple[Address, Hash], ...] = ()
    unrevealed: tuple[Address, ...] = ()
    lots: tuple[tuple[Address, str], ...] = ()


class Drawer:
    """A vault in memory, with salts that a test can foretell."""

    def __init__(self, me: Address) -> None:
        self.me, self.content, self.count = me, dict[str, str](), 0

    async def salt(self) -> str:
        self.count += 1
        return f"{self.me}-{self.count}"

    async def put(self, name: str, content: str) -> None:
        self.content[name] = content

    async def get(self, name: str) -> str | None:
        return self.content.get(name)


@sealed("forecasts", timeout_s=5, reveal_s=5)
async def forecast(ctx: SealedContext, state: Market) -> Bps:
    """This agent's own estimate."""
    return Bps(1000 + int(ctx.me[-1], 16))


SERVICE = Service("market", state=Market, start=register, otherwise=pause, transitions={
    (register, "DONE"): forecast.commit, (register, ROUND_TIMEOUT): register,
    **forecast.transitions,
    (forecast.reveal, "DONE"): pause, (pause, "DONE"): forecast.commit,
})  # fmt: skip


def vaults() -> Any:
    made: dict[Address, Drawer] = {}
    return lambda me: {"vault": made.setdefault(me, Drawer(me))}


def commitments(*, salt: str = "s", payload: Any = Bps(7)) -> tuple[tuple[Address, Hash], ...]:
    return tuple((who, commitment_to("ForecastRound", 0, who, salt, payload)) for who in MEMBERS)


def test_the_two_rounds_are_named_after_the_act_and_found_where_it_stands() -> None:
    assert (forecast.commit.name, forecast.reveal.name) == ("ForecastCommitRound", "ForecastRevealRound")
    assert "test_sealed.py:" in forecast.commit.where
    assert forecast.commit.payload is Hash
    assert forecast.reveal.payload == tuple[str, Bps] | None


async def test_all_commit_and_then_reveal() -> None:
    async with Network(SERVICE, context=vaults()) as net:
        await net.run_until(settled=(forecast.reveal, "DONE"))
        assert [value for _, value in net.state.forecasts] == [1001, 1002, 1003, 1004]
        assert net.state.unrevealed == ()


async def test_an_agent_that_restarts_between_the_rounds_still_reveals() -> None:
    async with Network(SERVICE, context=vaults()) as net:
        await net.run_until(round=forecast.reveal)
        net.crash(3)
        net.restart(3)
        await net.run_until(settled=(forecast.reveal, "DONE"))
        assert len(net.state.forecasts) == 4


async def test_who_commits_and_falls_silent_is_named() -> None:
    async with Network(SERVICE, context=vaults()) as net:
        await net.run_until(round=forecast.reveal)
        net.crash(3)
        await net.run_until(settled=(forecast.reveal, "DONE"))
        assert net.state.unrevealed == (net.agents[3],)
        assert len(net.state.forecasts) == 3


async def test_a_copier_is_left_with_a_commitment_that_it_cannot_open() -> None:
    """The copier repeats another's commitment, and then its reveal, both seen in the block: neither opens for it."""

    def copy(period: Period) -> Iterable[bytes]:
        victim = period.members[0]
        if period.round is register:
            yield codec.encode(victim)
        if period.round is forecast.commit:
            yield codec.encode(commitment_to("ForecastRound", 0, victim, f"{victim}-1", Bps(1001)))
        if period.round is forecast.reveal:
            yield codec.encode((f"{victim}-1", 1001))

    async with Network(SERVICE, context=vaults()) as net:
        net.lie(3, copy)
        await net.run_until(settled=(forecast.reveal, "DONE"))
        assert net.state.unrevealed == (net.agents[3],)
        assert len(net.state.forecasts) == 3


REVEAL = forecast.reveal.settle


def test_a_reveal_counts_only_for_what_was_committed() -> None:
    state = Market(commitments=commitments()[:3])
    sent: dict[Address, Any] = {A: ("s", 7), B: ("s", 8), C: ("t", 7), D: ("s", 7)}
    waiting = Votes.of([(A, sent[A]), (B, sent[B])], n=4)
    assert REVEAL(state, waiting) is None
    done = REVEAL(state, Votes.of(sent.items()))
    assert done == Outcome("NO_MAJORITY", replace(state, unrevealed=(B, C)))
    honest = REVEAL(state, Votes.of({**sent, B: ("s", 7)}.items()))
    assert honest == Outcome("DONE", replace(state, forecasts=((A, Bps(7)), (B, Bps(7))), unrevealed=(C,)))


@dataclass(frozen=True)
class Guarded(Market, Watched):
    """The same, and what is on record."""


def test_who_does_not_reveal_is_on_record_with_its_commitment() -> None:
    state = Guarded(commitments=commitments()[:3])
    ended = REVEAL(state, Votes.of([(A, ("s", 7)), (B, ("s", 7)), (C, None), (D, None)]))
    assert ended is not None
    (offence,) = ended.state.offences.latest
    assert (offence.kind, offence.member, offence.evidence) == ("not revealing", C, dict(state.commitments)[C])


def test_too_few_reveals_end_at_once_when_no_more_can_come() -> None:
    state = Market(commitments=commitments()[:3])
    assert REVEAL(state, Votes.of([(A, None), (B, None)], n=4)) == Outcome(
        "NO_MAJORITY", replace(state, unrevealed=(A, B, C))
    )


def test_a_commitment_tells_nothing_without_the_salt_and_fits_one_sender_and_period() -> None:
    made = {
        commitment_to("R", 0, A, "s", 7),
        commitment_to("R", 0, A, "t", 7),
        commitment_to("R", 0, B, "s", 7),
        commitment_to("R", 1, A, "s", 7),
        commitment_to("Q", 0, A, "s", 7),
        commitment_to("R", 0, A, "s", 8),
    }
    assert len(made) == 6


async def test_an_agent_whose_commitment_did_not_count_reveals_nothing() -> None:
    ctx: Any = type("Ctx", (), {"me": A, "vault": Drawer(A)})()
    assert await forecast.reveal.act(ctx, Market()) is None
    assert await forecast.reveal.act(ctx, Market(commitments=commitments())) is None  # its vault was lost


async def test_an_act_that_breaks_its_word_commits_to_nothing() -> None:
    @sealed("forecasts")
    async def cheat(ctx: Context, state: Market) -> Bps:
        return "much"  # type: ignore[return-value]

    ctx: Any = type("Ctx", (), {"me": A, "vault": Drawer(A)})()
    with pytest.raises(ServiceError, match=r"CheatRound .* is no Bps"):
        await cheat.commit.act(ctx, Market())


async def test_lots_make_a_number_that_every_contribution_changes() -> None:
    service = Service("lottery", state=Market, start=draw.commit, otherwise=draw.commit, transitions={
        **draw.transitions, (draw.reveal, "DONE"): pause, (pause, "DONE"): draw.commit,
    })  # fmt: skip
    async with Network(service, context=vaults()) as net:
        await net.run_until(settled=(draw.reveal, "DONE"))
        lots = net.state.lots
    assert len(lots) == 4
    numbers = {lot_of(lots), *(lot_of((*lots[:i], *lots[i + 1 :])) for i in range(4))}
    assert len(numbers) == 5
    assert all(0 <= number < 1 << 256 for number in numbers)
