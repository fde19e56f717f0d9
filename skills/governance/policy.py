"""The delegate's policy: what code decides about a decoded action, before any model is asked.

The rules that hold here: pure functions; what cannot be decoded is opposed; no text of the proposal is read, so no
text can change a ruling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from quorate.chain import Action, Kind
from quorate.errors import ConfigError
from quorate.signatures import keccak
from quorate.units import Address, Bps, Hash, Wei

__all__ = ["Policy", "Ruling", "Verdict", "load_policy", "rule_on"]

Verdict = Literal["FORBIDDEN", "ALLOWED", "OPEN"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the delegate was told to support, oppose and leave to people (dao/policies/*.yaml)."""

    name: str
    max_payment: Wei
    """Most that the payments of one proposal may come to, in wei of the DAO's token."""
    margin: Bps
    """How much nearer to a welcomed than to a forbidden sentence an action must be to be supported."""
    welcome: tuple[str, ...]
    forbidden: tuple[str, ...]
    digest: Hash
    """keccak256 of the file."""


@dataclass(frozen=True)
class Ruling:
    """What code says about a proposal's actions, by which rule, and why in one sentence."""

    verdict: Verdict
    rule: str
    reason: str


def load_policy(path: Path) -> Policy:
    """The policy in the YAML file at `path`; `ConfigError` names the field that is wrong."""
    raw = path.read_bytes()
    fields: Any = yaml.safe_load(raw)
    try:
        policy = Policy(
            name=str(fields["name"]),
            max_payment=Wei(int(fields["max_payment"])),
            margin=Bps(int(fields["margin_bps"])),
            welcome=_sentences(fields["welcome"]),
            forbidden=_sentences(fields["forbidden"]),
            digest=Hash("0x" + keccak(raw).hex()),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path.name}: {error!r}", fix="expected: name, max_payment, margin_bps, welcome, forbidden"
        ) from error
    if not 0 <= policy.margin <= 10_000:
        raise ConfigError(f"{path.name}: margin_bps is {policy.margin}; expected 0 to 10000")
    return policy


def rule_on(policy: Policy, token: Address, treasury: Address, actions: Sequence[Action]) -> Ruling:
    """Rule on a proposal: the strictest ruling on any of its actions, and on their payments together."""
    if not actions:
        return Ruling("OPEN", "no-action", "it changes nothing on-chain: people decide")
    rulings = [_rule_on_one(token, treasury, action) for action in actions]
    for verdict in ("FORBIDDEN", "OPEN"):
        for ruling in rulings:
            if ruling.verdict == verdict:
                return ruling
    paid = sum(action.amount for action in actions)
    limit = f"the limit of {_tokens(policy.max_payment)} tokens for one proposal"
    if paid > policy.max_payment:
        return Ruling("FORBIDDEN", "payment-limit", f"it pays {_tokens(paid)} tokens, over {limit}")
    return Ruling("ALLOWED", "payment-limit", f"it pays {_tokens(paid)} tokens, within {limit}")


def _rule_on_one(token: Address, treasury: Address, action: Action) -> Ruling:
    if action.kind in _FORBIDDEN:
        return Ruling("FORBIDDEN", action.kind, f"{_FORBIDDEN[action.kind]}: {action.text}")
    if action.kind == "token_transfer" and action.target == token:
        if action.argument("to") in {treasury, token}:
            return Ruling("OPEN", "payment-to-itself", "it pays the treasury or the token itself: people decide")
        return Ruling("ALLOWED", "payment", action.text)
    return Ruling("OPEN", "not-covered", f"the policy does not cover this, people decide: {action.text}")


_FORBIDDEN: Mapping[Kind, str] = {
    "undecodable": "what cannot be read is opposed",
    "unknown_function": "what is not known is opposed",
    "relay": "it makes the Governor call something else",
    "role_grant": "it gives an address control",
    "role_revoke": "it takes control from an address",
    "role_renounce": "it gives up control",
    "ownership_transfer": "it gives an address control",
    "ownership_renounce": "it gives up control",
    "timelock_setting": "it changes the delay before a decision takes effect",
    "upgrade": "it replaces code",
    "token_approve": "it lets others spend the treasury",
    "token_transfer_from": "it moves what belongs to others",
    "token_mint": "it mints tokens",
}
"""What the policy never supports, whatever its target: a strange contract's `approve` may well be a trap."""


def _tokens(amount: int) -> str:
    whole, part = divmod(amount, 10**18)
    return f"{whole:,}" + (f".{part:018d}".rstrip("0") if part else "")


def _sentences(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item.strip() for item in value):
        raise ValueError("expected a list of sentences")
    return tuple(item.strip() for item in value)
