"""An interrupt goes through the chain's side of the machine as any payload does."""

from __future__ import annotations

from dataclasses import replace

from quorate import BACK, ROUND_TIMEOUT, Address, Bps, Context, Interrupt, Service, agree, median, same
from quorate.abci.machine import Block, Replica, apply_block, opening_of, payload_for
from quorate.abci.payload import SignedPayload
from quorate.abci.transaction import Kind, Transaction
from quorate.fsm import Period, Settled, State, codec
from quorate.rounds import pause
from tests.unit.rounds.test_rules import Poll

A, B, C, D = MEMBERS = tuple(Address(f"0x{i:040d}") for i in range(1, 5))


@agree(median("number"), timeout_s=5)
async def look(ctx: Context, state: Poll) -> Bps:
    return Bps(1)


@agree(same("word"), timeout_s=5)
async def halted(ctx: Context, state: Poll) -> str:
    return ""


HALT = Interrupt("HALT", halted)
SERVICE = Service("halting", state=Poll, start=look, otherwise=look, interrupts=(HALT,), transitions={
    (look, "DONE"): pause, (pause, "DONE"): look, (halted, "DONE"): BACK, (halted, "NO_MAJORITY"): halted,
    (halted, ROUND_TIMEOUT): halted,
})  # fmt: skip


def sent(period: Period, sender: Address, body: bytes) -> Transaction:
    payload: SignedPayload = payload_for("chain", period, body).signed(sender, b"")
    return Transaction(Kind.PAYLOAD, (payload,))


def test_asks_are_news_and_change_nothing_that_payloads_are_bound_to() -> None:
    first = apply_block(Replica.start(Period.start(SERVICE, MEMBERS)), Block(1, 1_000, ())).replica
    opening = opening_of(first.period)
    asks = tuple(sent(first.period, who, first.period.ask("HALT")) for who in (A, B))
    applied = apply_block(first, Block(2, 2_000, asks))
    assert applied.accepted == (True, True)
    assert applied.replica.hot == 2
    assert opening_of(applied.replica.period) == opening == applied.replica.opening
    assert opening_of(replace(first.period, state=State())) != opening


def test_a_quorum_of_asks_leaves_the_round_and_its_end_opens_the_same_round_with_another_opening() -> None:
    first = apply_block(Replica.start(Period.start(SERVICE, MEMBERS)), Block(1, 1_000, ())).replica
    asks = tuple(sent(first.period, who, first.period.ask("HALT")) for who in (A, B, C))
    halting = apply_block(first, Block(2, 2_000, asks))
    assert halting.settled == Settled("LookRound", "HALT", 1)
    again = Replica.decode(SERVICE, halting.replica.encode())
    assert again == halting.replica
    words = tuple(sent(again.period, who, codec.encode("go")) for who in (A, B, C))
    back = apply_block(again, Block(3, 3_000, words)).replica
    assert back.period.round is look
    assert back.opening != first.opening
