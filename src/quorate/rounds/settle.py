"""Settle agreed calls through the Safe that the agents own: sign together, one sends, all check. Exactly once.

The rules that hold here:
- An intent is agreed, and in the state, *before* anybody signs. Each agent derives the Safe's transaction from it; that
  transaction's EIP-712 hash (over chain, Safe, nonce and calls) is the intent's id, and is in the state before anybody
  sends.
- At most once: an intent keeps its nonce until the chain has used that nonce up for good, across rounds that fail and
  periods that end (`Settling.unsettled`). Of all transactions with one nonce the Safe executes one.
- At least once: keepers rotate and re-send the same signed transaction; a receipt that a reorg took away opens it
  again.
- What can no longer succeed is cancelled by an agreed no-op at the same nonce.
- The outcome is what the Safe's events say at the configured depth, never what a keeper says.

How a service settles: its state extends `Settling`; the act of a round of its own proposes ``await intend(ctx, state,
*calls)``; that round's rule, where a quorum proposes the same, returns ``with_intent(state, intent)``, the intent's
block being the `middle_block` of the proposed ones; and its table joins `transitions`. skills/governance is an example.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Any, Literal, Protocol, TypeVar

from quorate.fsm import AnyRound, Context, Outcome, State, Votes, agree, keep, with_deadline
from quorate.signatures import recover
from quorate.units import Address, Call, Hash

__all__ = [
    "REFUSED",
    "Intent",
    "KeeperSilence",
    "SafeSignature",
    "Settlement",
    "Settler",
    "Settling",
    "confirm",
    "intend",
    "middle_block",
    "review",
    "send",
    "sign",
    "transitions",
    "with_intent",
]

MAX_UNSETTLED = 8
"""So many different intents may wait at one nonce; beyond, only a cancel is proposed."""
MAX_SILENCES = 100
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 4.0


@dataclass(frozen=True)
class Intent:
    """Calls that the agents want their Safe to make at one nonce of the Safe: all of them in order, once or not at all.

    No calls: a no-op, which cancels whatever else was signed for that nonce.
    """

    calls: tuple[Call, ...]
    nonce: int
    block: int = field(default=0, compare=False)
    """The block at which it is simulated, and near which its traces begin. Not part of what it is."""


@dataclass(frozen=True)
class SafeSignature:
    """One owner's signature (`signature`, 65 bytes as 0x-hex) of the Safe's transaction hash (`digest`)."""

    digest: Hash
    signature: str


REFUSED = SafeSignature(Hash("0x"), "0x")
"""The answer of an agent in whose simulation the calls fail: it counts for no transaction."""


@dataclass(frozen=True)
class Settlement:
    """What became of a nonce of the Safe: the transaction that used it up, and who sent that.

    `which` is the intent's place in `Settling.unsettled`; -1 where it was none of ours. `success` is False where the
    calls failed and the nonce was used up all the same.
    """

    which: int
    tx: Hash
    block: int
    gas: int
    success: bool
    sender: Address


@dataclass(frozen=True)
class KeeperSilence:
    """That `keeper` had its time and a quorum did not see the transaction `digest` mined; another keeper did better."""

    keeper: Address
    digest: Hash
    period: int


@dataclass(frozen=True)
class Settling(State):
    """The state of a service that settles."""

    keeper: Address = Address("")
    intent: Intent | None = None
    """What is being settled. After `confirm`: what was executed, None where it was a transaction of somebody else's."""
    signatures: tuple[tuple[Address, SafeSignature], ...] = ()
    settlement: Settlement | None = None
    unsettled: tuple[Intent, ...] = keep(())
    """All that may have signatures and may still happen, at one nonce; the newest is last."""
    silences: tuple[KeeperSilence, ...] = keep(())
    """Offences of keepers, oldest first, at most 100."""


class Settler(Protocol):
    """What these rounds need of the chain; `quorate.host` gives it, a test scripts it."""

    async def next_nonce(self) -> tuple[int, int]:
        """The nonce that the Safe's next transaction will have, and the block in which that was read."""
        ...

    async def can_succeed(self, intent: Intent, block: int | None = None) -> bool:
        """Whether the Safe could make the calls at the end of `block` (of the newest if not told)."""
        ...

    async def sign(self, intent: Intent) -> SafeSignature:
        """This agent's signature; refused where `intent` is not the agreed one."""
        ...

    async def push(self, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> None:
        """See to it that a transaction of this agent's own, carrying the signed intent, is mined: send, re-send,
        reprice.

        To be called again and again; what was sent before is looked for first. Troubles of the chain raise nothing.
        """
        ...

    async def outcome(self, unsettled: tuple[Intent, ...], *, final: bool = False) -> Settlement | None:
        """What used up the nonce of these intents; None while it is open. `final`: at the configured depth."""
        ...


class SettleContext(Context, Protocol):
    """What an agent reaches while it settles."""

    @property
    def settler(self) -> Settler:
        """This agent's way to the Safe."""
        ...


S = TypeVar("S", bound=Settling)


async def intend(ctx: SettleContext, state: Settling, *calls: Call) -> Intent:
    """The intent to propose for these calls: at the nonce of what is still unsettled, else at the Safe's next.

    So nothing new can happen *beside* an old intent whose fate is unknown, only in its place.
    """
    nonce, block = await ctx.settler.next_nonce()
    if not state.unsettled:
        return Intent(calls, nonce, block)
    intent = Intent(calls, state.unsettled[0].nonce, block)
    is_too_many = len(state.unsettled) >= MAX_UNSETTLED and intent not in state.unsettled
    return replace(intent, calls=()) if is_too_many else intent


def with_intent(state: S, intent: Intent) -> S:
    """The state in which `intent` is agreed: to be called where a rule accepts it, before anybody signs."""
    others = tuple(one for one in state.unsettled if one != intent)
    return replace(state, intent=intent, unsettled=(*others, intent), signatures=(), settlement=None)


def middle_block(intents: Iterable[Intent]) -> int:
    """The block that a quorum's intents agree on: the median of theirs lies between two that honest agents named."""
    return median_low(intent.block for intent in intents)


def keep_signatures(state: S, votes: Votes[SafeSignature]) -> Outcome[Literal["DONE", "NO_MAJORITY"], S] | None:
    """End with a quorum of *valid* signatures of one transaction hash, and name this period's first keeper.

    A signature that is not its sender's counts for nothing, so fewer than a third of liars can neither forge a
    transaction nor spoil one: at worst the round waits for the honest quorum. Who refuses counts for nothing too.
    """
    by_digest: dict[Hash, list[tuple[Address, SafeSignature]]] = defaultdict(list)
    for sender, payload in votes.items():
        if _is_signed_by(sender, payload):
            by_digest[payload.digest].append((sender, payload))
    for digest in sorted(by_digest):
        if len(by_digest[digest]) >= votes.quorum:
            signed = tuple(by_digest[digest][: votes.quorum])  # one more than the Safe needs costs 7.7 k gas
            return Outcome("DONE", replace(state, signatures=signed, keeper=_first_keeper(state)))
    best = max((len(group) for group in by_digest.values()), default=0)
    return Outcome("NO_MAJORITY", state) if best + votes.n - len(votes) < votes.quorum else None


@agree(keep_signatures, timeout_s=30, needs=("participants", "intent"), sets={"DONE": ("keeper", "signatures")})
async def sign(ctx: SettleContext, state: Any) -> SafeSignature:
    """Sign the agreed intent's Safe transaction, if its calls succeed at the agreed block.

    Where the nonce is used up already the signature does no harm, and the next round finds out for what it was used.
    """
    intent = _intent_of(state)
    is_open = await ctx.settler.outcome(state.unsettled) is None
    if is_open and not await ctx.settler.can_succeed(intent, intent.block):
        return REFUSED
    return await ctx.settler.sign(intent)


def see_it_mined(state: S, votes: Votes[Hash]) -> Outcome[Literal["DONE"], S] | None:
    """End when a quorum saw the nonce used up; by which transaction is confirmed later, at its depth.

    Liars can say so too early, together with honest agents only; `confirm` then reopens.
    """
    return Outcome("DONE", state) if len(votes) >= votes.quorum else None


def rotate_keeper(state: S, votes: Votes[Hash]) -> Outcome[Literal["ROTATE", "STUCK"], S] | None:
    """The keeper's time is over: the next participant sends the same signed transaction; STUCK when all have tried.

    A keeper whose successor does better was silent. Where all fail it is not the keepers, so nobody is blamed.
    """
    order, digest = state.participants, _digest_of(state)
    after = order[(order.index(state.keeper) + 1) % len(order)]
    if after == _first_keeper(state):
        innocent = tuple(one for one in state.silences if one.digest != digest)
        return Outcome("STUCK", replace(state, keeper=after, silences=innocent))
    silences = (*state.silences, KeeperSilence(state.keeper, digest, state.period))[-MAX_SILENCES:]
    return Outcome("ROTATE", replace(state, keeper=after, silences=silences))


@agree(with_deadline(see_it_mined, rotate_keeper), timeout_s=12, needs=("intent", "keeper", "signatures"))
async def send(ctx: SettleContext, state: Any) -> Hash:
    """The keeper sends; everybody says by which transaction the nonce was used up, as soon as it is in any block."""
    pause_s = _FIRST_PAUSE_S
    while (seen := await ctx.settler.outcome(state.unsettled)) is None:
        if state.keeper == ctx.me:
            await ctx.settler.push(_intent_of(state), dict(state.signatures))
        await ctx.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
    return seen.tx


def keep_settlement(
    state: S, votes: Votes[Settlement | None]
) -> Outcome[Literal["DONE", "FAILED", "REOPENED", "NO_MAJORITY"], S] | None:
    """End when a quorum read the same from the chain at its depth; REOPENED where it has vanished from the chain.

    DONE: the calls that were wanted last were made. FAILED: they never will be; `intent` says what was done instead.
    """
    for settlement in votes.agreed():
        if settlement is None:
            return Outcome("REOPENED", state)
        executed = state.unsettled[settlement.which] if 0 <= settlement.which < len(state.unsettled) else None
        wanted = next((one for one in reversed(state.unsettled) if one.calls), None)
        is_done = settlement.success and wanted is not None and executed == wanted
        silences = tuple(one for one in state.silences if not _has_sent(one, settlement, state))
        settled = replace(state, settlement=settlement, intent=executed, unsettled=(), silences=silences)
        return Outcome("DONE" if is_done else "FAILED", settled)
    return Outcome("NO_MAJORITY", state) if votes.split() else None


@agree(keep_settlement, timeout_s=60, needs=("intent", "signatures"))
async def confirm(ctx: SettleContext, state: Any) -> Settlement | None:
    """Wait until what used up the nonce is as deep as configured, and report it; None as soon as it has vanished."""
    pause_s = _FIRST_PAUSE_S
    while (settled := await ctx.settler.outcome(state.unsettled, final=True)) is None:
        if await ctx.settler.outcome(state.unsettled) is None:
            return None
        await ctx.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
    return settled


def keep_review(state: S, votes: Votes[bool]) -> Outcome[Literal["AGAIN", "CANCEL"], S] | None:
    """CANCEL where a quorum finds that the calls fail: a no-op takes their place at their nonce. Else try AGAIN."""
    intent = _intent_of(state)
    for can_succeed in votes.agreed():
        if not can_succeed:
            return Outcome("CANCEL", with_intent(state, replace(intent, calls=())))
        return Outcome("AGAIN", state)
    return Outcome("AGAIN", state) if votes.split() else None


@agree(keep_review, timeout_s=30, needs=("intent",))
async def review(ctx: SettleContext, state: Any) -> bool:
    """After every keeper has tried in vain: could the calls still succeed, or were they made meanwhile?"""
    intent = _intent_of(state)
    return await ctx.settler.outcome(state.unsettled) is not None or await ctx.settler.can_succeed(intent)


transitions: Mapping[tuple[AnyRound, str], AnyRound] = {
    (sign, "DONE"): send,
    (send, "DONE"): confirm,
    (send, "ROTATE"): send,
    (send, "STUCK"): review,
    (review, "AGAIN"): send,
    (review, "ROUND_TIMEOUT"): send,
    (review, "CANCEL"): sign,
    (confirm, "REOPENED"): send,
    (confirm, "NO_MAJORITY"): send,
    (confirm, "ROUND_TIMEOUT"): confirm,
}
"""From an agreed intent to its final outcome. A service says what leads to `sign`, where `confirm` leads with DONE and
FAILED, and what `sign` falls back to; whatever that is, the intent stays in `unsettled`."""


def _first_keeper(state: Settling) -> Address:
    return state.participants[state.period % len(state.participants)]


def _digest_of(state: Settling) -> Hash:
    return state.signatures[0][1].digest if state.signatures else Hash("0x")


def _has_sent(silence: KeeperSilence, settlement: Settlement, state: Settling) -> bool:
    return silence.keeper == settlement.sender and silence.digest == _digest_of(state)


def _is_signed_by(sender: Address, payload: SafeSignature) -> bool:
    try:
        digest, signature = bytes.fromhex(payload.digest[2:]), bytes.fromhex(payload.signature[2:])
    except ValueError:
        return False
    return recover(digest, signature) == sender


def _intent_of(state: Settling) -> Intent:
    if state.intent is None:
        raise ValueError("a settlement round was reached without an agreed intent; set it by `with_intent` in a rule")
    return state.intent
