"""The rounds of an accountable delegate: find a proposal, read it, judge it, draft the vote; the Safe casts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from quorate.chain import (
    ABSTAIN,
    AGAINST,
    FOR,
    AddressBook,
    Chain,
    Governor,
    Proposal,
    ProposalState,
    Support,
    decode_actions,
)
from quorate.errors import ModelError
from quorate.fsm import AnyRound, Outcome, Votes, agree
from quorate.model import ModelClient
from quorate.rounds import choice, same, settle
from quorate.rounds.settle import Intent, SettleContext, Settling
from quorate.signatures import keccak
from quorate.units import Address, Bps, Hash

from .judgement import Choice, Judgement, Reading, choose, nearness, weights
from .policy import Policy, rule_on
from .rationale import build_rationale, hash_rationale, write_reason
from .reader import NO_SUMMARY, Summary, read_aloud, receipt_file
from .words import one_line

__all__ = ["Delegation", "Draft", "draft", "judge", "read", "transitions", "watch"]

_REORG_BLOCKS = 64  # looked at again each time: a proposal may come back in another block
_SUPPORT: Mapping[Choice, Support] = {"AGAINST": AGAINST, "FOR": FOR, "ABSTAIN": ABSTAIN}


@dataclass(frozen=True)
class Draft:
    """The vote as the agents will cast it: the Safe's call, and the rationale behind it."""

    rationale: Hash
    reason: str
    intent: Intent


@dataclass(frozen=True)
class Delegation(Settling):
    """What the agents agree on while they decide about one proposal."""

    proposal: int = 0
    reading: Reading | None = None
    support: Choice = "ABSTAIN"
    judgements: tuple[tuple[Address, Judgement], ...] = ()
    rationale: Hash | None = None
    reason: str = ""


class DelegateConfig(Protocol):
    """What the rounds read of the service's configuration."""

    @property
    def safe(self) -> Address: ...
    @property
    def governor(self) -> Address: ...
    @property
    def from_block(self) -> int: ...
    @property
    def token(self) -> Address: ...
    @property
    def treasury(self) -> Address: ...
    @property
    def poll_ms(self) -> int: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def book(self) -> AddressBook: ...
    @property
    def embedding_model(self) -> str: ...
    @property
    def language_model(self) -> str: ...


class DelegateContext(SettleContext, Protocol):
    """What an agent reaches while it acts as a delegate."""

    config: DelegateConfig

    @property
    def chain(self) -> Chain: ...
    @property
    def model(self) -> ModelClient: ...
    def emit(self, kind: str, **fields: Any) -> None:
        """Tell whoever watches this agent what happened."""
        ...

    def keep(self, name: str, content: bytes) -> None:
        """Keep evidence in a file of this agent's own."""
        ...


@agree(same("proposal"), timeout_s=300)
async def watch(ctx: DelegateContext, state: Delegation) -> int:
    """Find the oldest proposal that is open for votes and that the Safe has not voted on."""
    governor = _governor(ctx)
    ctx.emit("waiting", **{"for": "a proposal that is open for votes"})
    waiting: dict[int, Proposal] = {}
    handled: set[int] = set()
    begin, seen = ctx.config.from_block, -1
    while True:
        if (head := await ctx.chain.block_number()) != seen:
            fresh = await governor.proposals(begin, head)
            waiting |= {one.id: one for one in fresh if one.id not in handled}
            begin, seen = max(ctx.config.from_block, head - _REORG_BLOCKS), head  # from now on, only what is new
        for number in sorted(waiting, key=lambda known: waiting[known].block):
            stage = await governor.state(number)
            if stage == ProposalState.ACTIVE and not await governor.has_voted(number, ctx.config.safe):
                return number
            if stage != ProposalState.PENDING:
                handled.add(number)
                del waiting[number]
        await ctx.sleep(ctx.config.poll_ms / 1000)


@agree(same("reading"), timeout_s=30, needs=("proposal",))
async def read(ctx: DelegateContext, state: Delegation) -> Reading:
    """Read the proposal from the chain, decode its actions and let the policy's code rule on them."""
    proposal = await _governor(ctx).proposal(state.proposal, ctx.config.from_block)
    actions = decode_actions(proposal.calls, ctx.config.book)
    ruling = rule_on(ctx.config.policy, ctx.config.token, ctx.config.treasury, actions)
    return Reading(
        proposal=proposal.id,
        actions=_hash_actions(proposal),
        action_text=one_line("; ".join(action.text for action in actions), 1000),
        purpose=_purpose_of(proposal.description),
        verdict=ruling.verdict,
        rule=ruling.rule,
        reason=one_line(ruling.reason, 1000),
    )


@agree(
    choice("support", ("FOR", "AGAINST", "ABSTAIN"), otherwise="ABSTAIN", by="choice", keep="judgements"),
    timeout_s=180,
    needs=("proposal", "reading"),
)
async def judge(ctx: DelegateContext, state: Delegation) -> Judgement:
    """Ask staked operators, and choose: code's ruling first, then the purpose's nearness to the policy's sentences.

    Of the proposal's own words only the title is measured, and only where code allows the action: no text can turn a
    forbidden action into a supported one. The language model words a summary, which is shown and weighs nothing.
    """
    reading, policy = _reading_of(state), ctx.config.policy
    weight = weights(reading.verdict)
    measured = await _measure(ctx, reading, weight["embeddings"])
    summary = await _summarise(ctx, state)
    return Judgement(
        choice=choose(reading.verdict, measured.welcome, measured.forbidden, policy.margin),
        welcome=measured.welcome,
        forbidden=measured.forbidden,
        operator=measured.operator,
        receipt=measured.receipt,
        summary_operator=summary.operator,
        summary_receipt=summary.receipt,
        summary=summary.digest,
    )


def keep_draft(state: Delegation, votes: Votes[Draft]) -> Outcome[Literal["DONE", "NO_MAJORITY"], Delegation] | None:
    """End when a quorum drafted the same vote; it is simulated at the middle one of the blocks that they named."""
    drafts = Votes(tuple((who, _at_block(draft, 0)) for who, draft in votes.items()), votes.n, votes.quorum)
    drafted = drafts.same()
    if drafted is None:
        return Outcome("NO_MAJORITY", state) if drafts.split() else None
    block = settle.middle_block(draft.intent for draft in votes.values() if _at_block(draft, 0) == drafted)
    noted = replace(state, rationale=drafted.rationale, reason=drafted.reason)
    return Outcome("DONE", settle.with_intent(noted, _at_block(drafted, block).intent))


@agree(
    keep_draft,
    timeout_s=30,
    needs=("proposal", "reading", "judgements"),
    sets={"DONE": ("rationale", "reason", "intent")},
)
async def draft(ctx: DelegateContext, state: Delegation) -> Draft:
    """Write the rationale from agreed state, and the call that casts the vote with its hash."""
    reading = _reading_of(state)
    rationale = build_rationale(
        reading=reading, judgements=state.judgements, support=state.support, policy=ctx.config.policy
    )
    digest = hash_rationale(rationale)
    ctx.keep(f"rationale-{digest}.json", rationale)
    reason = write_reason(state.support, reading, digest)
    call = _governor(ctx).cast_vote_with_reason(state.proposal, _SUPPORT[state.support], reason)
    return Draft(rationale=digest, reason=reason, intent=await settle.intend(ctx, state, call))


transitions: Mapping[tuple[AnyRound, str], AnyRound] = {
    (watch, "DONE"): read,
    (watch, "NO_MAJORITY"): watch,
    (watch, "ROUND_TIMEOUT"): watch,
    (read, "DONE"): judge,
    (judge, "DONE"): draft,
    (draft, "DONE"): settle.sign,
    **settle.transitions,
}
"""From a proposal seen to a vote mined; a service says where `confirm` leads, and what the rest falls back to."""


def _at_block(draft: Draft, block: int) -> Draft:
    return replace(draft, intent=replace(draft.intent, block=block))


@dataclass(frozen=True)
class _Measured:
    welcome: Bps
    forbidden: Bps
    operator: Address
    receipt: Hash | None


async def _measure(ctx: DelegateContext, reading: Reading, weight_bps: int) -> _Measured:
    """Nearness of the purpose to the policy; where it weighs nothing, an operator's failure weighs nothing either."""
    policy = ctx.config.policy
    try:
        embedding = await ctx.model.embed(
            [reading.purpose, *policy.welcome, *policy.forbidden], model=ctx.config.embedding_model
        )
        welcome, forbidden = nearness(policy, embedding.vectors)
    except ModelError as error:
        if weight_bps:
            raise
        ctx.emit("refused", operator="", reason=str(error))
        return _Measured(Bps(0), Bps(0), Address(""), None)
    text = f"{welcome / 100:.1f} % near to welcomed, {forbidden / 100:.1f} % to forbidden"
    for attempt in embedding.attempts:
        ctx.emit("refused", operator=attempt.operator, reason=attempt.reason)
    ctx.emit(
        "model",
        model=embedding.model,
        operator=embedding.operator,
        text=text,
        ms=round(1000 * embedding.seconds),
        receipt_ok=True,
        weight_bps=weight_bps,
    )
    digest = Hash("0x" + embedding.receipt.digest().hex())
    ctx.keep(f"receipt-{digest}.json", receipt_file(embedding.receipt.as_json(), embedding.signature))
    return _Measured(welcome, forbidden, embedding.operator, digest)


async def _summarise(ctx: DelegateContext, state: Delegation) -> Summary:
    """The language model's summary: weight 0, so its failure is told and changes nothing."""
    proposal = await _governor(ctx).proposal(state.proposal, ctx.config.from_block)
    try:
        summary = await read_aloud(ctx.model, ctx.config.language_model, proposal.description)
    except ModelError as error:
        ctx.emit("refused", operator="", reason=str(error))
        return NO_SUMMARY
    for operator, reason in summary.refused:
        ctx.emit("refused", operator=operator, reason=reason)
    ctx.emit(
        "model",
        model=summary.model,
        operator=summary.operator,
        text=summary.text,
        ms=summary.ms,
        receipt_ok=True,
        weight_bps=0,
    )
    ctx.keep(f"summary-{summary.digest}.txt", summary.text.encode())
    ctx.keep(f"receipt-{summary.receipt}.json", summary.receipt_file)
    return summary


def _governor(ctx: DelegateContext) -> Governor:
    return Governor(ctx.chain, ctx.config.governor)


def _reading_of(state: Delegation) -> Reading:
    if state.reading is None:
        raise ValueError("judge and draft follow read; the transition table leads here without it")
    return state.reading


def _hash_actions(proposal: Proposal) -> Hash:
    """keccak256 over the proposal's calls as text; the separators are in no address, number or hex, so lists differ."""
    calls = (f"{call.to}:{call.value}:{call.data}" for call in proposal.calls)
    return Hash("0x" + keccak(text="\n".join(calls)).hex())


def _purpose_of(description: str) -> str:
    """The first line that says something, without Markdown's marks and hidden characters; at most 120 characters."""
    for line in description.splitlines():
        if title := one_line(line, 120).strip("#*_ "):
            return title
    return "(no title)"
