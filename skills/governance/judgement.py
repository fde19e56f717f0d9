"""From a ruling and measured nearness to one agent's choice; pure, with the weights that the rationale shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quorate.units import Address, Bps, Hash

from .policy import Policy, Verdict

__all__ = ["Choice", "Judgement", "Reading", "choose", "nearness", "weights"]

Choice = Literal["FOR", "AGAINST", "ABSTAIN"]


@dataclass(frozen=True)
class Reading:
    """What every agent read from the chain about a proposal: facts, no opinion."""

    proposal: int
    actions: Hash
    """keccak256 of targets, values and calldata, as the Governor hashes them with the description."""
    action_text: str
    """The decoded actions in plain words, made by code."""
    purpose: str
    """The proposal's own title: the one line of its text that is measured against the policy's sentences."""
    verdict: Verdict
    rule: str
    reason: str


@dataclass(frozen=True)
class Judgement:
    """One agent's choice and what it rests on. Model texts stay with the agent; their receipts' hashes are agreed."""

    choice: Choice
    welcome: Bps
    """Cosine with the nearest welcomed sentence, in 1/10,000; 0 where no model was asked."""
    forbidden: Bps
    operator: Address
    """Who signed the receipt of the embeddings; empty where no model was asked."""
    receipt: Hash | None
    summary_operator: Address
    summary_receipt: Hash | None
    summary: Hash | None
    """keccak256 of the language model's words. They weigh nothing."""


def choose(verdict: Verdict, welcome: Bps, forbidden: Bps, margin: Bps) -> Choice:
    """Code decides what it can; within what it allows, the embeddings do; in doubt the delegate abstains."""
    if verdict == "FORBIDDEN":
        return "AGAINST"
    if verdict == "OPEN":
        return "ABSTAIN"
    if welcome - forbidden >= margin:
        return "FOR"
    return "AGAINST" if forbidden - welcome >= margin else "ABSTAIN"


def weights(verdict: Verdict) -> dict[str, int]:
    """What decided, in basis points of the decision: code's veto is whole; the language model never has a say."""
    code = 0 if verdict == "ALLOWED" else 10_000
    return {"policy in code": code, "embeddings": 10_000 - code, "language model": 0}


def nearness(policy: Policy, vectors: Sequence[Sequence[float]]) -> tuple[Bps, Bps]:
    """Cosine of the first vector with the nearest welcomed and the nearest forbidden sentence, in basis points.

    `vectors` holds the purpose's, then one for each welcomed, then one for each forbidden sentence.
    """
    purpose, *sentences = vectors
    if len(sentences) != len(policy.welcome) + len(policy.forbidden):
        raise ValueError(f"{len(sentences)} vectors for {len(policy.welcome) + len(policy.forbidden)} sentences")
    cosines = [_cosine_bps(purpose, sentence) for sentence in sentences]
    return Bps(max(cosines[: len(policy.welcome)])), Bps(max(cosines[len(policy.welcome) :]))


def _cosine_bps(a: Sequence[float], b: Sequence[float]) -> int:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norm = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    if not norm:
        raise ValueError("an embedding of length zero has no direction")
    return round(10_000 * dot / norm)
