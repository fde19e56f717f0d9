"""The rationale of a vote: one canonical file, the same on every agent, made from agreed state alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from quorate.signatures import keccak
from quorate.units import Address, Hash

from .judgement import Choice, Judgement, Reading, weights
from .policy import Policy
from .words import one_line

__all__ = ["build_rationale", "hash_rationale", "write_reason"]

_LONGEST_REASON = 300  # characters of the ruling's reason: what goes on-chain is paid for by the byte


def build_rationale(
    *, reading: Reading, judgements: Sequence[tuple[Address, Judgement]], support: Choice, policy: Policy
) -> bytes:
    """The rationale as canonical JSON: what was read, what each agent judged, what decided and with which weight."""
    document: dict[str, Any] = {
        "version": 1,
        "proposal": str(reading.proposal),
        "support": support,
        "purpose": reading.purpose,
        "action": reading.action_text,
        "policy": {"name": policy.name, "hash": policy.digest, "verdict": reading.verdict, "rule": reading.rule,
                   "reason": reading.reason},
        "weights_bps": weights(reading.verdict),
        "weights_note": "Code rules first. Within what it allows, nearness of embeddings to the policy's sentences "
        "decides. The language model has shown no judgement in evaluation, so its summary weighs nothing.",
        "margin_bps": policy.margin,
        "judgements": {agent: asdict(judgement) for agent, judgement in sorted(judgements)},
    }  # fmt: skip
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def hash_rationale(rationale: bytes) -> Hash:
    """keccak256 of the file's bytes: what the vote's reason on-chain points to."""
    return Hash("0x" + keccak(rationale).hex())


def write_reason(support: Choice, reading: Reading, rationale_hash: Hash) -> str:
    """The reason that goes on-chain with the vote: one sentence, and the hash of the whole rationale."""
    decider = (
        "policy in code" if reading.verdict != "ALLOWED" else "nearness to the policy's sentences, within its limits"
    )
    reason = one_line(reading.reason, _LONGEST_REASON)
    return f"{support}: {reason}. Decided by {decider}. Rationale keccak256 {rationale_hash}"
