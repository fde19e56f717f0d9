"""From a ruling and measured nearness to one agent's choice; pure, with the weights that the rationale shows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quorate.errors import Malformed
from quorate.units import Address, Bps, Hash

from .policy import Policy, Verdict

__all__ = ["Choice", "Judgement", "Reading", "choose", "nearness", "weights"]

Choice = Literal["FOR", "AGAINST", "ABSTAIN"]

_ADDRESS, _HASH = re.compile("0x[0-9a-fA-F]{40}"), re.compile("0x[0-9a-f]{64}")


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

    def __post_init__(self) -> None:
        """The rationale shows every agent's judgement, a liar's too: words in a hash's place never count."""
        for cosine in (self.welcome, self.forbidden):
            if abs(cosine) > 10_000:
                raise ValueError(f"a cosine of {cosine}; expected -10000 to 10000")
        for operator in (self.operator, self.summary_operator):
            if operator and not _ADDRESS.fullmatch(operator):
                raise ValueError(f"an operator {operator[:80]!r}; expected an address or nothing")
        for digest in (self.receipt, self.summary_receipt, self.summary):
            if digest is not None and not _HASH.fullmatch(digest):
                raise ValueError(f"a digest {digest[:80]!r}; expected 0x and 64 small hex digits")


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

    `vectors` holds the purpose's, then one for each welcomed, then one for each forbidden sentence. They are an
    operator's answer: `Malformed` where they cannot be compared.
    """
    expected = 1 + len(policy.welcome) + len(policy.forbidden)
    lengths = sorted({len(vector) for vector in vectors})
    if len(vectors) != expected or len(lengths) != 1:
        raise Malformed(f"{len(vectors)} vectors of lengths {lengths}; expected {expected} of one length")
    purpose, *sentences = vectors
    cosines = [_cosine_bps(purpose, sentence) for sentence in sentences]
    return Bps(max(cosines[: len(policy.welcome)])), Bps(max(cosines[len(policy.welcome) :]))


def _cosine_bps(a: Sequence[float], b: Sequence[float]) -> int:
    norm = math.hypot(*a) * math.hypot(*b)
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else math.nan
    if not math.isfinite(cosine):
        raise Malformed("an embedding has no direction: its length is zero or beyond all numbers")
    return max(-10_000, min(10_000, round(10_000 * cosine)))
