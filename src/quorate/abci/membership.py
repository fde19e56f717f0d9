"""What a change of members is to the chain: other senders from the next round on, and other validators. Pure.

    block h      a round ends with another roster: the next round's payloads are the new members', with their quorum;
                 FinalizeBlock answers the powers of the validators that come and go
    block h + 1  is still voted on by the old validators: whoever left has to vote once more, with an empty extension,
                 and whoever came sends his payload as a transaction
    block h + 2  is the first that the new validators vote on.

So a validator that left is remembered (`Turnover`): his last vote is no fault, though nothing in it counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quorate.abci.genesis import POWER, Genesis
from quorate.errors import ServiceError
from quorate.fsm import Period, Service, Votes
from quorate.members import Member, Membership

__all__ = ["DELAY", "Turnover", "begin", "by_validator", "powers_of", "roster_of", "seat"]

DELAY = 2
"""Blocks until CometBFT goes by other validators; its own figure."""


@dataclass(frozen=True)
class Turnover:
    """The last change of members, and whose votes it leaves behind."""

    height: int = 0
    """The block that made it; 0 where there was none."""
    former: tuple[Member, ...] = ()
    """Who is no member any more, and may have voted since the block before that."""

    def after(self, height: int, before: tuple[Member, ...], now: tuple[Member, ...]) -> Turnover:
        """The turnover after block `height` has made `now` the members in place of `before`."""
        stay = {one.validator_key for one in now}
        still_voting = self.former if height <= self.height + DELAY else ()
        return Turnover(height, tuple(one for one in (*still_voting, *before) if one.validator_key not in stay))

    def plain(self) -> list[Any]:
        """As JSON has it."""
        return [self.height, [dataclasses.astuple(one) for one in self.former]]

    @staticmethod
    def read(plain: Any) -> Turnover:
        """The turnover that was `plain`; `ValueError` or `TypeError` where it is none."""
        height, former = plain
        return Turnover(height, tuple(Member(*fields) for fields in former))


def begin(service: Service, genesis: Genesis) -> Period:
    """The machine before the first block; a `Membership` then knows its chain and its members."""
    state = service.state()
    if isinstance(state, Membership):
        state = dataclasses.replace(state, chain=genesis.chain_id, roster=genesis.members)
    return Period.start(service, genesis.addresses, state)


def roster_of(period: Period) -> tuple[Member, ...]:
    """The members as the agreed state has them; empty where they are those of the genesis for good."""
    return period.state.roster if isinstance(period.state, Membership) else ()


def seat(period: Period) -> Period:
    """`period`, whose round has just opened, with the members of its state; what others ask for counts no more."""
    roster = roster_of(period)
    members = tuple(one.address for one in roster)
    if members == period.members or not isinstance(period.state, Membership):
        return period
    if not members or list(members) != sorted(set(members)):
        raise ServiceError(
            f"a rule of {period.service.name} left the roster {list(members)}; expected members in the order of their "
            "addresses, at least one and each once",
            fix="Return dataclasses.replace(state, ...), or quorate.members.with_change(state, change).",
        )
    votes = Votes[Any].of((), n=len(members))
    asks = tuple(ask for ask in period.asks if ask[1] in members)
    return dataclasses.replace(period, members=members, votes=votes, asks=asks)


def powers_of(before: tuple[Member, ...], now: tuple[Member, ...]) -> dict[str, int]:
    """What the validators' powers become, by CometBFT address, where `now` are members in place of `before`."""
    gone = {one.validator_address: 0 for one in before}
    come = {one.validator_address: POWER for one in now}
    return {who: power for who, power in {**gone, **come}.items() if (who in gone) != (who in come)}


def by_validator(members: Iterable[Member], turnover: Turnover) -> dict[str, Member]:
    """Whose validator may vote, by CometBFT address."""
    return {one.validator_address: one for one in (*turnover.former, *members)}
