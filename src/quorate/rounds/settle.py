"""Settle agreed calls through the Safe that the agents own: sign together, one sends, all check. Exactly once.

The rules that hold here:
- An intent is agreed, and in the state, *before* anybody signs. Each agent derives the Safe's transaction from it; that
  transaction's EIP-712 hash (over chain, Safe, nonce and calls) is the intent's id, and is in the state before anybody
  sends.
- At most once: an intent keeps its nonce until the chain has used that nonce up for good, across rounds that fail and
  periods that end (`Settling.unsettled`). Of all transactions with one nonce the Safe executes one. A call that may
  still happen at one nonce is agreed on at no other.
- At least once: keepers rotate and re-send the same signed transaction; a receipt that a reorg took away opens it
  again. Nonces that were used and are not any more are restored in their order, each with what was wanted there last,
  before anything new: also such as were final, where a reorg was deeper than the depth that people chose. What others
  had used is restored by a no-op.
- What can no longer succeed is cancelled by an agreed no-op at the same nonce. What waits behind calls that failed is
  cancelled too: it was agreed on before anybody knew.
- The outcome is what the Safe's events say at the configured depth, never what a keeper says.

How a service settles: its state extends `Settling`; the act of a round of its own proposes ``await intend(ctx, state,
*calls)``; that round's rule, where a quorum proposes the same, returns ``with_intent(state, intent)``, the intent's
block being the `middle_block` of the proposed ones; and its table joins `transitions`. skills/governance is an example.

A service that need not know the outcome of one intent before it agrees on the next joins `ahead` in the place of
`transitions`: what is mined waits for its depth while up to three more follow it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Any, Literal, Protocol, Self, TypeVar

from quorate.errors import ChainError
from quorate.fsm import AnyRound, Context, Outcome, Votes, agree, keep, with_deadline
from quorate.offences import THIS_ROUND, Watched, charge
from quorate.signatures import recover
from quorate.units import Address, Call, Hash, PeriodNumber, RoundNumber

__all__ = [
    "MAX_AHEAD",
    "NO_OWNER",
    "REFUSED",
    "REMEMBERED",
    "Intent",
    "KeeperSilence",
    "Report",
    "SafeSignature",
    "Settled",
    "Settlement",
    "Settler",
    "Settling",
    "Verdict",
    "ahead",
    "collect",
    "confirm",
    "in_flight",
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
MAX_AHEAD = 4
"""So many nonces may be unsettled at a time; beyond, the oldest is waited for."""
REMEMBERED = 4
"""So many final nonces can be restored after a reorg that was deeper than the configured depth."""
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
NO_OWNER = SafeSignature(Hash("0x"), "")
"""The answer of an agent that is no owner of the Safe any more, or not again: a reorg took its owners' change away."""


@dataclass(frozen=True)
class Settlement:
    """What became of a nonce of the Safe: the transaction that used it up, and who sent that.

    `which` is the intent's place among the unsettled ones of that nonce; -1 where it was none of ours. `success` is
    False where the calls failed and the nonce was used up all the same.
    """

    which: int
    tx: Hash
    block: int
    gas: int
    success: bool
    sender: Address
    digest: Hash = Hash("0x")
    """The Safe transaction's hash, whoever agreed on it."""


@dataclass(frozen=True)
class Report:
    """What an agent sees of the oldest unsettled nonce: whether it is used in any block, and its final outcome."""

    is_used: bool
    settlement: Settlement | None = None


@dataclass(frozen=True)
class Settled:
    """A nonce that is final: all that had been agreed on for it, what was executed last. A no-op stands for others'."""

    intents: tuple[Intent, ...]

    @property
    def nonce(self) -> int:
        """Of the Safe."""
        return self.intents[0].nonce


@dataclass(frozen=True)
class KeeperSilence:
    """That `keeper` had its time and a quorum did not see the transaction `digest` mined; another keeper did better."""

    keeper: Address
    digest: Hash
    period: int
    round: RoundNumber = THIS_ROUND
    """In which its time passed; 0 until that block is over."""


@dataclass(frozen=True)
class Settling(Watched):
    """The state of a service that settles; keepers that let their time pass go on record (`quorate.offences`)."""

    keeper: Address = Address("")
    intent: Intent | None = None
    """What is being settled. After `confirm`: what was executed, None where it was a transaction of somebody else's.

    After a reorg deeper than the configured depth, an outcome that was told before is told again, or another one.
    """
    signatures: tuple[tuple[Address, SafeSignature], ...] = ()
    settlement: Settlement | None = None
    missed: Intent | None = None
    """After FAILED: the calls that were wanted last at that nonce. They never happen there."""
    unsettled: tuple[Intent, ...] = keep(())
    """All that may have signatures and may still happen, by nonce; of one nonce the newest is last."""
    used: int = keep(0)
    """A quorum has seen all nonces below this one used. Goes back when a reorg took one away."""
    reached: int = keep(0)
    """The most that `used` has been: what is below and not used now is restored before anything new."""
    remembered: tuple[Settled, ...] = keep(())
    """The last final nonces, oldest first, at most 4."""
    silences: tuple[KeeperSilence, ...] = keep(())
    """Keepers' times that passed, oldest first, at most 100. On record once another keeper has done better."""

    def ended_in(self, ended: RoundNumber) -> Self:
        """With the round's number in what its rule has noted."""
        if all(one.round for one in self.silences):
            return self
        return replace(self, silences=tuple(one if one.round else replace(one, round=ended) for one in self.silences))


class Settler(Protocol):
    """What these rounds need of the chain; `quorate.host` gives it, a test scripts it."""

    async def next_nonce(self) -> tuple[int, int]:
        """The nonce that the Safe's next transaction will have, and the block in which that was read.

        Raises ChainError while a reorg within the configured depth could still change it.
        """
        ...

    async def newest(self) -> tuple[int, int]:
        """As `next_nonce`, however young that nonce is."""
        ...

    async def can_succeed(self, intent: Intent, block: int | None = None) -> bool:
        """Whether the Safe could make the calls at the end of `block` (of the newest if not told)."""
        ...

    async def sign(self, intent: Intent) -> SafeSignature:
        """This agent's signature; refused where `intent` is not the agreed one."""
        ...

    async def is_owner(self) -> bool:
        """Whether this agent is an owner of the Safe in the newest block."""
        ...

    async def push(self, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> None:
        """See to it that a transaction of this agent's own, carrying the signed intent, is mined: send, re-send,
        reprice.

        To be called again and again; what was sent before is looked for first. Troubles of the chain raise nothing.
        """
        ...

    async def outcome(self, unsettled: tuple[Intent, ...], *, final: bool = False) -> Settlement | None:
        """What used up the one nonce of these intents; None while it is open. `final`: at the configured depth."""
        ...


class SettleContext(Context, Protocol):
    """What an agent reaches while it settles."""

    @property
    def settler(self) -> Settler:
        """This agent's way to the Safe."""
        ...


S = TypeVar("S", bound=Settling)


async def intend(ctx: SettleContext, state: Settling, *calls: Call) -> Intent:
    """The intent to propose for these calls: at the Safe's next nonce that no quorum has seen used.

    It is another one than these calls where something has to come first: a nonce that a reorg took away (what was
    wanted there, or a no-op where that fails now), one of the calls that may still happen at an older nonce (that
    intent, until it is final), or the oldest intent where too many are unsettled.
    """
    if not state.unsettled:
        nonce, block = await ctx.settler.next_nonce()
        return await _restored(ctx, state, nonce, block) if nonce < state.reached else Intent(calls, nonce, block)
    (_, block), nonce = await ctx.settler.newest(), max(state.used, state.unsettled[0].nonce)
    if nonce < state.reached:
        return await _restored(ctx, state, nonce, block)
    others = [one for one in state.unsettled if one.nonce != nonce]
    if twice := [one for one in others if not set(calls).isdisjoint(one.calls)]:
        newest = _alternatives(state, twice[-1].nonce)[-1]
        return twice[-1] if newest.calls else newest  # cancelled: what fails there is not wanted again and again
    if len({one.nonce for one in others}) >= MAX_AHEAD:
        return _alternatives(state, others[0].nonce)[-1]
    intent, there = Intent(calls, nonce, block), _alternatives(state, nonce)
    return replace(intent, calls=()) if len(there) >= MAX_UNSETTLED and intent not in there else intent


async def _restored(ctx: SettleContext, state: Settling, nonce: int, block: int) -> Intent:
    """What was wanted at a nonce that is not used any more; a no-op where that can no longer succeed."""
    known = [one.intents[-1] for one in state.remembered if one.nonce == nonce] + [
        one for one in state.unsettled if one.nonce == nonce
    ]
    if not known:
        raise _lost(state, nonce)
    wanted = replace(known[-1], block=block)
    return wanted if await ctx.settler.can_succeed(wanted) else replace(wanted, calls=())


def _lost(state: Settling, nonce: int) -> ChainError:
    return ChainError(
        f"the Safe's nonce is {nonce}, and {state.reached} nonces were used: a reorg took more than the last "
        f"{len(state.remembered)} settlements away",
        fix="People have to find out what was undone; then start a new chain of the service.",
    )


def with_intent(state: S, intent: Intent) -> S:
    """The state in which `intent` is agreed: to be called where a rule accepts it, before anybody signs."""
    if not state.unsettled:
        state = _back_to(state, intent.nonce)
        known = (*state.remembered, *_of_others(state, intent))[-REMEMBERED:]
        state = replace(state, reached=max(intent.nonce, state.reached), remembered=known)
    first = min(one.block for one in (*state.unsettled, intent) if one == intent)  # it may have been mined long ago
    others = (one for one in state.unsettled if one != intent)
    unsettled = _by_nonce(*others, replace(intent, block=first))
    return replace(state, intent=intent, unsettled=unsettled, signatures=(), settlement=None, missed=None)


def _of_others(state: Settling, intent: Intent) -> list[Settled]:
    """The last nonces before this intent's that no quorum has seen used: others did, and a reorg may take that away."""
    begin = max(state.reached, intent.nonce - REMEMBERED)
    return [Settled((Intent((), nonce, intent.block),)) for nonce in range(begin, intent.nonce)]


def _back_to(state: S, nonce: int) -> S:
    """The state in which this nonce is not used any more: what was final from there on is unsettled again."""
    gone = [one for one in state.remembered if one.nonce >= nonce]
    again = tuple(intent for one in gone for intent in one.intents)
    kept = tuple(one for one in state.remembered if one not in gone)
    return replace(state, used=nonce, remembered=kept, unsettled=(*again, *state.unsettled))


def in_flight(state: Settling) -> tuple[Intent, ...]:
    """What was wanted last at each nonce that a quorum has seen used and whose outcome is not final: for `confirm`."""
    newest = {one.nonce: one for one in state.unsettled if one.nonce < state.reached}
    return tuple(newest.values())


def _by_nonce(*intents: Intent) -> tuple[Intent, ...]:
    return tuple(sorted(intents, key=lambda one: one.nonce))


def _alternatives(state: Settling, nonce: int) -> tuple[Intent, ...]:
    return tuple(one for one in state.unsettled if one.nonce == nonce)


def _oldest(state: Settling) -> tuple[Intent, ...]:
    """All that is agreed on for the oldest unsettled nonce."""
    if not state.unsettled:
        raise ValueError("a settlement round was reached while nothing is unsettled; let such a period end without it")
    return _alternatives(state, state.unsettled[0].nonce)


def middle_block(intents: Iterable[Intent]) -> int:
    """The block that a quorum's intents agree on: the median of theirs lies between two that honest agents named."""
    return median_low(intent.block for intent in intents)


def keep_signatures(state: S, votes: Votes[SafeSignature]) -> Outcome[Literal["DONE", "NO_MAJORITY"], S] | None:
    """End with a quorum of *valid* signatures of one transaction hash, and name this period's first keeper.

    A signature that is not its sender's counts for nothing, so fewer than a third of liars can neither forge a
    transaction nor spoil one: at worst the round waits for the honest quorum. Who refuses counts for nothing too.
    Where what a reorg took away is refused, a no-op is wanted at its nonce from then on.
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
    if best + votes.n - len(votes) >= votes.quorum:
        return None
    intent, refusals = _intent_of(state), sum(payload == REFUSED for _, payload in votes.items())
    if intent.nonce < state.reached and refusals > votes.n - votes.quorum:  # to be restored, and fails now
        state = with_intent(state, replace(intent, calls=()))
    return Outcome("NO_MAJORITY", state)


@agree(keep_signatures, timeout_s=30, needs=("participants", "intent"), sets={"DONE": ("keeper", "signatures")})
async def sign(ctx: SettleContext, state: Any) -> SafeSignature:
    """Sign the agreed intent's Safe transaction, if its calls succeed at the agreed block.

    Where the nonce is used up already the signature does no harm, and the next round finds out for what it was used.
    What is restored may be older than the last change of the Safe's owners: then who is none leaves it to the others.
    """
    intent = _intent_of(state)
    is_open = await ctx.settler.outcome(_alternatives(state, intent.nonce)) is None
    if is_open and not await ctx.settler.can_succeed(intent, intent.block):
        return REFUSED
    if is_open and intent.nonce < state.reached and not await ctx.settler.is_owner():
        return NO_OWNER
    return await ctx.settler.sign(intent)


def see_it_mined(state: S, votes: Votes[Hash]) -> Outcome[Literal["DONE"], S] | None:
    """End when a quorum saw the nonce used up; by which transaction is confirmed later, at its depth.

    Liars can say so too early, together with honest agents only; `confirm` then reopens.
    """
    if len(votes) < votes.quorum:
        return None
    used = max(state.used, _intent_of(state).nonce + 1)
    return Outcome("DONE", replace(state, used=used, reached=max(used, state.reached)))


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
    pause_s, intent = _FIRST_PAUSE_S, _intent_of(state)
    while (seen := await ctx.settler.outcome(_alternatives(state, intent.nonce))) is None:
        if state.keeper == ctx.me:
            await ctx.settler.push(intent, dict(state.signatures))
        await ctx.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
    return seen.tx


def keep_settlement(
    state: S, votes: Votes[Settlement | None]
) -> Outcome[Literal["DONE", "FAILED", "REOPENED", "UNSIGNED", "NO_MAJORITY"], S] | None:
    """End when a quorum read the same from the chain at its depth; reopened where it has vanished from the chain.

    DONE: the calls that were wanted last at the oldest nonce were made. FAILED: they never will be (`missed`); `intent`
    says what was done instead. Reopened: what is sent again is signed already (REOPENED), or not (UNSIGNED).
    """
    for settlement in votes.agreed():
        return _reopened(state, state.unsettled[0].nonce) if settlement is None else _settled(state, settlement)
    return Outcome("NO_MAJORITY", state) if votes.split() else None


def _settled(state: S, settlement: Settlement) -> Outcome[Literal["DONE", "FAILED"], S]:
    intents = _oldest(state)
    nonce = intents[0].nonce
    executed = intents[settlement.which] if 0 <= settlement.which < len(intents) else None
    wanted = next((one for one in reversed(intents) if one.calls), None)
    is_done = settlement.success and wanted is not None and executed == wanted
    later = state.unsettled[len(intents) :]
    used = max(state.used, nonce + 1)
    if wanted is not None and not is_done:  # what waits behind and is not mined was agreed on in the belief that it is
        open_nonces = {one.nonce for one in later if one.nonce >= used}
        no_ops = tuple(Intent((), one, settlement.block) for one in sorted(open_nonces))
        later = _by_nonce(*(one for one in later if one not in no_ops), *no_ops)
    last = Intent((), nonce, settlement.block) if executed is None else executed
    final = Settled((*(one for one in intents if one != last), last))
    settled = replace(
        state,
        settlement=settlement,
        intent=executed,
        missed=None if is_done else wanted,
        unsettled=later,
        used=used,
        reached=max(used, state.reached),
        remembered=(*state.remembered, final)[-REMEMBERED:],
        silences=tuple(one for one in state.silences if not _has_sent(one, settlement)),
    )
    for one in settled.silences:
        if one.digest == settlement.digest:
            found = PeriodNumber(one.period)
            settled = charge(settled, "keeper silence", one.keeper, one.digest, sequence=one.round, period=found)
    return Outcome("DONE" if is_done else "FAILED", settled)


def _reopened(state: S, nonce: int) -> Outcome[Literal["REOPENED", "UNSIGNED"], S]:
    """Back to this nonce, with what was wanted there last."""
    state = _back_to(state, nonce)
    wanted = _alternatives(state, nonce)[-1]
    if wanted == state.intent and state.signatures:
        return Outcome("REOPENED", state)
    return Outcome("UNSIGNED", with_intent(state, wanted))


_SETS = {"REOPENED": ("intent", "keeper", "signatures"), "UNSIGNED": ("intent",)}


@agree(keep_settlement, timeout_s=60, sets=_SETS)
async def confirm(ctx: SettleContext, state: Any) -> Settlement | None:
    """Wait until what used up the oldest nonce is as deep as configured, and report it; None once it has vanished."""
    pause_s, intents = _FIRST_PAUSE_S, _oldest(state)
    while (settled := await ctx.settler.outcome(intents, final=True)) is None:
        if not await _is_used(ctx, intents[0].nonce):
            return None
        await ctx.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
    return settled


def keep_report(
    state: S, votes: Votes[Report]
) -> Outcome[Literal["DONE", "FAILED", "AHEAD", "REOPENED", "UNSIGNED", "NO_MAJORITY"], S] | None:
    """As `keep_settlement`; AHEAD where the outcome is to come and there is room for another intent."""
    for report in votes.agreed():
        if report.settlement is not None:
            return _settled(state, report.settlement)
        return Outcome("AHEAD", state) if report.is_used else _reopened(state, state.unsettled[0].nonce)
    if not votes.split():
        return None
    return Outcome("AHEAD" if _has_room(state) else "NO_MAJORITY", state)


@agree(keep_report, timeout_s=60, sets=_SETS)
async def collect(ctx: SettleContext, state: Any) -> Report:
    """Report the oldest nonce's outcome where it is final; wait for it only where there is no room for another."""
    pause_s, intents = _FIRST_PAUSE_S, _oldest(state)
    while (settled := await ctx.settler.outcome(intents, final=True)) is None:
        is_used = await _is_used(ctx, intents[0].nonce)
        if not is_used or _has_room(state):
            return Report(is_used)
        await ctx.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
    return Report(True, settled)


async def _is_used(ctx: SettleContext, nonce: int) -> bool:
    safes, _ = await ctx.settler.newest()
    return safes > nonce


def _has_room(state: Settling) -> bool:
    return len({one.nonce for one in state.unsettled}) < MAX_AHEAD


Verdict = Literal["SOUND", "FAILS", "GONE"]
"""Of an intent that is not mined: it may still be, its calls fail, or a nonce before it is not used any more."""


def keep_review(
    state: S, votes: Votes[Verdict]
) -> Outcome[Literal["AGAIN", "CANCEL", "REOPENED", "UNSIGNED"], S] | None:
    """CANCEL where a quorum finds that the calls fail: a no-op takes their place at their nonce. Else try AGAIN.

    Where a quorum finds a nonce before it unused, a reorg took that away: back to the oldest that is unsettled, or to
    the oldest that is remembered. Of these, what is used still is seen to be so at once.
    """
    intent = _intent_of(state)
    for verdict in votes.agreed():
        if verdict == "FAILS":
            return Outcome("CANCEL", with_intent(state, replace(intent, calls=())))
        before = [state.unsettled[0].nonce, *(one.nonce for one in state.remembered)]
        oldest = before[0] if before[0] < intent.nonce else min(before)
        if verdict == "GONE" and oldest < intent.nonce:
            return _reopened(state, oldest)
        return Outcome("AGAIN", state)
    return Outcome("AGAIN", state) if votes.split() else None


@agree(keep_review, timeout_s=30, needs=("intent",))
async def review(ctx: SettleContext, state: Any) -> Verdict:
    """After every keeper has tried in vain: could the calls still succeed, or were they made meanwhile?"""
    intent = _intent_of(state)
    nonce, _ = await ctx.settler.newest()
    if nonce < min([state.unsettled[0].nonce, *(one.nonce for one in state.remembered)]):
        raise _lost(state, nonce)
    if nonce < intent.nonce:
        return "GONE"
    if await ctx.settler.outcome(_alternatives(state, intent.nonce)) is not None:
        return "SOUND"
    return "SOUND" if await ctx.settler.can_succeed(intent) else "FAILS"


transitions: Mapping[tuple[AnyRound, str], AnyRound] = {
    (sign, "DONE"): send,
    (send, "DONE"): confirm,
    (send, "ROTATE"): send,
    (send, "STUCK"): review,
    (review, "AGAIN"): send,
    (review, "ROUND_TIMEOUT"): send,
    (review, "CANCEL"): sign,
    (review, "REOPENED"): send,
    (review, "UNSIGNED"): sign,
    (confirm, "REOPENED"): send,
    (confirm, "UNSIGNED"): sign,
    (confirm, "NO_MAJORITY"): send,
    (confirm, "ROUND_TIMEOUT"): confirm,
}
"""From an agreed intent to its final outcome. A service says what leads to `sign`, where `confirm` leads with DONE and
FAILED, and what `sign` falls back to; whatever that is, the intent stays in `unsettled`."""

ahead: Mapping[tuple[AnyRound, str], AnyRound] = {
    **transitions,
    (send, "DONE"): collect,
    (send, "ROTATE"): review,  # after 12 s and not after all keepers: it is often the one before that a reorg took
    (confirm, "NO_MAJORITY"): confirm,
    (collect, "REOPENED"): send,
    (collect, "UNSIGNED"): sign,
    (collect, "NO_MAJORITY"): collect,
    (collect, "ROUND_TIMEOUT"): collect,
}
"""As `transitions`, with up to four nonces unsettled at a time. A service also says where `collect` leads with DONE,
FAILED and AHEAD (to the round that agrees on the next intent), and goes to `confirm` when it has nothing more to do
while something is `in_flight`."""


def _first_keeper(state: Settling) -> Address:
    return state.participants[state.period % len(state.participants)]


def _digest_of(state: Settling) -> Hash:
    return state.signatures[0][1].digest if state.signatures else Hash("0x")


def _has_sent(silence: KeeperSilence, settlement: Settlement) -> bool:
    return (silence.keeper, silence.digest) == (settlement.sender, settlement.digest)


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
