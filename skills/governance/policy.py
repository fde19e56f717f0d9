"""The delegate's policy: what code decides about a decoded action, before any model is asked.

The rules that hold here: pure functions; what cannot be decoded is opposed; no text of the proposal is read, so no
text can change a ruling.
"""

from __future__ import annotations

import re
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
    try:
        raw = path.read_bytes()
        fields: Any = yaml.safe_load(raw)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the policy {path} cannot be read: {error}", fix="see dao/policies/treasury.yaml") from error
    if not isinstance(fields, dict) or set(fields) != _FIELDS:
        found = sorted(map(str, fields)) if isinstance(fields, dict) else f"a {type(fields).__name__}"
        raise ConfigError(
            f"{path.name} has {found}; expected {sorted(_FIELDS)}",
            fix="a rule that the code does not know would never be applied: remove it, or correct its name",
        )
    return Policy(
        name=_text(fields["name"], f"{path.name}: name"),
        max_payment=Wei(_number(fields["max_payment"], 0, 2**256 - 1, f"{path.name}: max_payment")),
        margin=Bps(_number(fields["margin_bps"], 1, 10_000, f"{path.name}: margin_bps")),
        welcome=_sentences(fields["welcome"], f"{path.name}: welcome"),
        forbidden=_sentences(fields["forbidden"], f"{path.name}: forbidden"),
        digest=Hash("0x" + keccak(raw).hex()),
    )


def rule_on(policy: Policy, token: Address, treasury: Address, actions: Sequence[Action]) -> Ruling:
    """Rule on a proposal: the strictest ruling on any of its actions, and on its payments together."""
    if not actions:
        return Ruling("OPEN", "no-action", "it changes nothing on-chain: people decide")
    payments = _rule_on_payments(policy, token, treasury, actions)
    rulings = [*(_rule_on_one(token, treasury, action) for action in actions), payments]
    strictest = min(rulings, key=lambda ruling: _STRICTEST_FIRST.index(ruling.verdict))
    return payments if strictest.verdict == "ALLOWED" else strictest


def _rule_on_payments(policy: Policy, token: Address, treasury: Address, actions: Sequence[Action]) -> Ruling:
    """Whatever stands beside them: an action that is left to people must not carry a payment past the limit."""
    transfers = [action for action in actions if action.kind == "token_transfer" and action.target == token]
    paid = sum(transfer.amount for transfer in transfers if transfer.argument("to") != treasury)
    limit = f"the limit of {_tokens(policy.max_payment)} tokens for one proposal"
    if paid > policy.max_payment:
        return Ruling("FORBIDDEN", "payment-limit", f"it pays {_tokens(paid)} tokens, over {limit}")
    return Ruling("ALLOWED", "payment-limit", f"it pays {_tokens(paid)} tokens, within {limit}")


def _rule_on_one(token: Address, treasury: Address, action: Action) -> Ruling:
    why = _FORBIDDEN.get(action.kind) or _FORBIDDEN_FUNCTIONS.get(action.function or "")
    if why:
        return Ruling("FORBIDDEN", action.kind, f"{why}: {action.text}")
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
    "token_burn": "it destroys what the treasury holds",
    "votes_delegate": "it gives an address the treasury's votes",
}
"""What the policy never supports, whatever its target: a strange contract's `approve` may well be a trap."""

_FORBIDDEN_FUNCTIONS: Mapping[str, str] = {"updateTimelock(address)": "it gives an address control"}
"""Single functions of kinds that are otherwise left to people."""

_STRICTEST_FIRST: Sequence[Verdict] = ("FORBIDDEN", "OPEN", "ALLOWED")

_FIELDS = frozenset({"name", "max_payment", "margin_bps", "welcome", "forbidden"})


def _tokens(amount: int) -> str:
    whole, part = divmod(amount, 10**18)
    return f"{whole:,}" + (f".{part:018d}".rstrip("0") if part else "")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where} is {value!r}; expected a text")
    return value.strip()


def _number(value: Any, least: int, most: int, where: str) -> int:
    """A whole number, plain or in quotes; a float would be another number than the one that was written."""
    is_whole = type(value) is int or (isinstance(value, str) and re.fullmatch("[0-9]{1,78}", value))
    if not is_whole or not least <= int(value) <= most:
        raise ConfigError(f"{where} is {value!r}; expected a whole number from {least} to {most}")
    return int(value)


def _sentences(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where} is {value!r}; expected a list of sentences")
    return tuple(_text(item, f"{where}[{place}]") for place, item in enumerate(value))
