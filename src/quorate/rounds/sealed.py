"""Commit, then reveal: a pair of rounds in which nobody can copy, and who does not reveal is named.

The rules that hold here:
- A commitment is H(round, period, sender, salt, payload): it tells nothing, and opens for its sender alone.
- What an agent committed to is durable before its commitment goes out, so a restart can still reveal it. It is found
  by its commitment, so an act that ran twice reveals what was counted.
- A reveal counts only for the commitment that was agreed on before anybody revealed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from quorate.fsm import NO_MAJORITY, Act, AnyRound, Context, Outcome, Ready, Votes, agree, codec
from quorate.offences import charge
from quorate.rounds.rules import each, until_deadline
from quorate.units import Address, Hash

__all__ = ["Sealed", "SealedContext", "Vault", "commitment_to", "draw", "lot_of", "sealed"]

P = TypeVar("P")


class Vault(Protocol):
    """What one agent keeps to itself, across restarts."""

    async def salt(self) -> str:
        """Fresh random text that nobody else can guess: 32 bytes as hex."""
        ...

    async def put(self, name: str, content: str) -> None:
        """Store `content`; it is durable when this returns."""
        ...

    async def get(self, name: str) -> str | None:
        """What was stored under `name`, or None."""
        ...


class SealedContext(Context, Protocol):
    """What an agent reaches in a sealed pair of rounds."""

    @property
    def vault(self) -> Vault:
        """This agent's own store."""
        ...


@dataclass(frozen=True)
class Sealed:
    """The two rounds, and the edge between them; a service says what leads to `commit` and where `reveal` leads.

    `commit` ends with DONE; `reveal` with DONE, or with NO_MAJORITY when too few can still reveal.
    """

    commit: AnyRound
    reveal: AnyRound
    transitions: Mapping[tuple[AnyRound, str], AnyRound]


def sealed(
    into: str,
    *,
    commitments: str = "commitments",
    unrevealed: str = "unrevealed",
    timeout_s: float = 30,
    reveal_s: float = 30,
) -> Callable[[Act[Any, P]], Sealed]:
    """Make an act two rounds: all commit to what it returns, and reveal it only when all commitments are agreed on.

    Field `into` takes the revealed (sender, payload) pairs, field `commitments` the (sender, hash) pairs, and field
    `unrevealed` those who committed and did not reveal, or revealed something else: an offence to act upon. Where the
    state is a `quorate.offences.Watched` it goes on record, with the commitment as evidence.

    Committing lasts until all have, or until its time is over and a quorum has. Revealing lasts until all that
    committed have answered, or until its time is over; with f or fewer reveals it ends with NO_MAJORITY, as soon as
    that is certain.

    Tolerates f silent or lying agents: nobody can choose a payload after seeing another's, nor take over another's
    commitment. A liar can still withhold its own payload when it knows the others' (and is named), so do not let the
    outcome of a draw hang on the last one without a price. Honest reveals are in the majority as long as all honest
    agents that committed are in time: the median of what was revealed is then within the honest range.
    """

    def wrap(act: Act[Any, P]) -> Sealed:
        whole = agree(each(into))(act)  # never run: it says what the act sends, and checks it
        opening = tuple[str, whole.payload]  # type: ignore[name-defined]  # a type made at run time

        async def commit(ctx: SealedContext, state: Any) -> Hash:
            payload, salt = await act(ctx, state), await ctx.vault.salt()
            whole.encode(payload)
            name = commitment_to(whole.name, state.period, ctx.me, salt, payload)
            await ctx.vault.put(name, codec.encode([salt, payload]).decode())
            return name

        async def reveal(ctx: SealedContext, state: Any) -> Any:
            name = dict(getattr(state, commitments)).get(ctx.me)
            content = None if name is None else await ctx.vault.get(name)
            return None if content is None else codec.decode(opening, content.encode())

        rule = _reveal_rule(whole, into, commitments, unrevealed)
        first = agree(until_deadline(commitments), timeout_s=timeout_s)(_named(act, commit, "commit", Hash))
        second = agree(rule, timeout_s=reveal_s)(_named(act, reveal, "reveal", opening | None))
        return Sealed(first, second, {(first, "DONE"): second})

    return wrap


def commitment_to(round_name: str, period: int, sender: Address, salt: str, payload: Any) -> Hash:
    """What `sender` commits with to `payload`; only the sender can open it, with the same salt, in this period."""
    return Hash("0x" + hashlib.sha256(codec.encode([round_name, period, sender, salt, payload])).hexdigest())


def _reveal_rule(whole: AnyRound, into: str, commitments: str, unrevealed: str) -> Ready:
    def settle(state: Any, votes: Votes[Any]) -> Outcome[str, Any] | None:
        waiting = [who for who, _ in getattr(state, commitments) if who not in votes]
        can_come = len(opened(state, votes)) + len(waiting) > (votes.n - 1) // 3
        return None if waiting and can_come else end(state, votes)

    def end(state: Any, votes: Votes[Any]) -> Outcome[str, Any]:
        revealed = opened(state, votes)
        withheld = tuple((who, its) for who, its in getattr(state, commitments) if who not in dict(revealed))
        silent = tuple(who for who, _ in withheld)
        for who, commitment in withheld:
            state = charge(state, "not revealing", who, commitment)
        if len(revealed) <= (votes.n - 1) // 3:
            return Outcome(NO_MAJORITY, replace(state, **{unrevealed: silent}))
        return Outcome("DONE", replace(state, **{into: revealed, unrevealed: silent}))

    def opened(state: Any, votes: Votes[Any]) -> tuple[tuple[Address, Any], ...]:
        found = []
        for who, commitment in getattr(state, commitments):
            salt, payload = votes.get(who) or ("", None)
            if salt and commitment_to(whole.name, state.period, who, salt, payload) == commitment:
                found.append((who, payload))
        return tuple(found)

    def stores(_: Any) -> dict[str, Any]:
        return {into: _pairs(whole.payload), unrevealed: tuple[Address, ...]}

    reads = {commitments: _pairs(str)}
    return Ready(settle, frozenset({"DONE", NO_MAJORITY}), stores, reads, at_deadline=end)


def _pairs(payload: Any) -> Any:
    return tuple[tuple[Address, payload], ...]


def _named(act: Act[Any, Any], function: Act[Any, Any], suffix: str, returns: Any) -> Act[Any, Any]:
    """`function` as a part of `act`: named after it, found where it stands."""
    functools.update_wrapper(function, act)
    function.__name__ = f"{act.__name__}_{suffix}"
    function.__annotations__ = {"return": returns}
    return function


@sealed("lots")
async def draw(ctx: SealedContext, state: Any) -> str:
    """Lots: random text from every agent into field `lots` of the state; `lot_of` makes a number of it."""
    return await ctx.vault.salt()


def lot_of(lots: tuple[tuple[Address, str], ...]) -> int:
    """256 bits from revealed lots (`draw`): uniform, and known to nobody before the reveal, if one is honest.

    What an adversary can bias: each liar that reveals late knows the number with and without its own lot, and can
    withhold it. So f liars choose among at most 2**f numbers, each by being named in `unrevealed`. None of them can
    steer it otherwise, no proposer can leave out a commitment in view of the number, and a single agent that is
    honest and in time is enough against all guesses.
    """
    return int.from_bytes(hashlib.sha256(b"quorate lots" + codec.encode(lots)).digest(), "big")
