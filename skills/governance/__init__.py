"""Governance: what a delegate of a DAO does, round by round, and the policy that binds it."""

from __future__ import annotations

from .judgement import Judgement, Reading, choose, nearness, weights
from .policy import Policy, Ruling, load_policy, rule_on
from .rationale import build_rationale, hash_rationale, write_reason
from .rounds import Delegation, Draft, draft, judge, read, transitions, watch

__all__ = [
    "Delegation",
    "Draft",
    "Judgement",
    "Policy",
    "Reading",
    "Ruling",
    "build_rationale",
    "choose",
    "draft",
    "hash_rationale",
    "judge",
    "load_policy",
    "nearness",
    "read",
    "rule_on",
    "transitions",
    "watch",
    "weights",
    "write_reason",
]
