"""Settle an agreed call through the Safe that the agents own: sign together, one sends, all check.

The rules that hold here:
- The intent is agreed *before* anybody signs; each agent derives the Safe's transaction hash from it.
- The Safe's nonce gives "at most once", rotation of the keeper gives "at least once".
- The outcome is read from the Safe's own events, never from what the keeper says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from quorate.fsm import Context, Outcome, Votes, agree, with_deadline
from quorate.signatures import recover
from quorate.units import Address, Call, Hash

__all__ = ["Intent", "SafeSignature", "Settlement", "Settler", "Settles", "confirm", "sign"]


@dataclass(frozen=True)
class Intent:
    """One call that the agents want their Safe to make, at one nonce of the Safe: it can happen once or not at all."""

    call: Call
    nonce: int


@dataclass(frozen=True)
class SafeSignature:
    """One owner's signature (`signature`, 65 bytes as 0x-hex) of the Safe's transaction hash (`digest`)."""

    digest: Hash
    signature: str


@dataclass(frozen=True)
class Settlement:
    """What became of an intent. `success` is False where the call failed or another transaction took its nonce."""

    tx: Hash
    block: int
    gas: int
    success: bool


class Settler(Protocol):
    """What these rounds need of the chain; `quorate.host` gives it, a test scripts it."""

    async def sign(self, intent: Intent) -> SafeSignature:
        """This agent's signature; refused where `intent` is not the agreed one."""
        ...

    async def execute(self, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> Hash:
        """Send the Safe's transaction and return the hash of the transaction that carries it."""
        ...

    async def outcome(self, intent: Intent) -> Settlement | None:
        """What the Safe's events and nonce say; None while the intent is open."""
        ...


class SettleContext(Context, Protocol):
    """What an agent reaches while it settles."""

    @property
    def settler(self) -> Settler:
        """This agent's way to the Safe."""
        ...


class Settles(Protocol):
    """The fields that a service's state needs to settle."""

    @property
    def participants(self) -> tuple[Address, ...]: ...
    @property
    def period(self) -> int: ...
    @property
    def keeper(self) -> Address: ...
    @property
    def intent(self) -> Intent | None: ...
    @property
    def signatures(self) -> tuple[tuple[Address, SafeSignature], ...]: ...
    @property
    def settlement(self) -> Settlement | None: ...


S = TypeVar("S", bound=Any)  # a State that satisfies Settles; bounds cannot say "both"


def keep_signatures(state: S, votes: Votes[SafeSignature]) -> Outcome[Literal["DONE", "NO_MAJORITY"], S] | None:
    """End with a quorum of *valid* signatures of one transaction hash, and name this period's first keeper.

    A signature that is not its sender's counts for nothing, so fewer than a third of liars can neither forge a
    transaction nor spoil one: at worst the round waits for the honest quorum.
    """
    by_digest: dict[Hash, list[tuple[Address, SafeSignature]]] = defaultdict(list)
    for sender, payload in votes.items():
        if _is_signed_by(sender, payload):
            by_digest[payload.digest].append((sender, payload))
    for digest in sorted(by_digest):
        if len(by_digest[digest]) >= votes.quorum:
            signed = tuple(by_digest[digest])
            done = replace(state, signatures=signed, keeper=_first_keeper(state), settlement=None)
            return Outcome("DONE", done)
    best = max((len(group) for group in by_digest.values()), default=0)
    return Outcome("NO_MAJORITY", state) if best + votes.n - len(votes) < votes.quorum else None


@agree(keep_signatures, timeout_s=30)
async def sign(ctx: SettleContext, state: Any) -> SafeSignature:
    """Sign the agreed intent's Safe transaction."""
    return await ctx.settler.sign(_intent_of(state))


def keep_settlement(state: S, votes: Votes[Settlement]) -> Outcome[Literal["DONE", "FAILED", "NO_MAJORITY"], S] | None:
    """End when a quorum read the same outcome from the chain."""
    settlement = votes.same()
    if settlement is not None:
        return Outcome("DONE" if settlement.success else "FAILED", replace(state, settlement=settlement))
    return Outcome("NO_MAJORITY", state) if votes.split() else None


def rotate_keeper(state: S, votes: Votes[Settlement]) -> Outcome[Literal["ROTATE", "FAILED"], S] | None:
    """The keeper's time is over: the next participant sends the same signed transaction; FAILED when all have tried.

    What failed may still be mined later: its signatures stay valid until the Safe's nonce moves on. So a service asks
    the chain anew before it acts again, and takes the same nonce: of two transactions with one nonce, one happens.
    """
    order = state.participants
    after = order[(order.index(state.keeper) + 1) % len(order)]
    if after == _first_keeper(state):
        return Outcome("FAILED", state)
    return Outcome("ROTATE", replace(state, keeper=after))


@agree(with_deadline(keep_settlement, rotate_keeper), timeout_s=12)
async def confirm(ctx: SettleContext, state: Any) -> Settlement:
    """The keeper sends; everybody waits for the outcome and reports what the chain says."""
    intent = _intent_of(state)
    settled = await ctx.settler.outcome(intent)
    if settled is None and state.keeper == ctx.me:
        await ctx.settler.execute(intent, dict(state.signatures))
    while settled is None:
        await ctx.sleep(0.25)
        settled = await ctx.settler.outcome(intent)
    return settled


def _first_keeper(state: Settles) -> Address:
    return state.participants[state.period % len(state.participants)]


def _is_signed_by(sender: Address, payload: SafeSignature) -> bool:
    try:
        digest, signature = bytes.fromhex(payload.digest[2:]), bytes.fromhex(payload.signature[2:])
    except ValueError:
        return False
    return recover(digest, signature) == sender


def _intent_of(state: Settles) -> Intent:
    if state.intent is None:
        raise ValueError("a settlement round was reached without an agreed intent; set `intent` in an earlier round")
    return state.intent
