"""Who the agents of a service are, and how that changes while it runs. Pure.

A member is an Ethereum address (it signs payloads), a validator key (CometBFT signs votes with it) and a node key
(p2p). The address's own signature binds the three to one chain, so nobody can enter another's address beside his own
validator.

The members are those of the genesis, unless the state of the service is a `Membership`: then they are its `roster`,
and a rule that agrees on another one (`quorate.rounds.membership`) changes who may send from the next round on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

from quorate.errors import ConfigError
from quorate.fsm import State, keep
from quorate.signatures import domain_separator, keccak, recover, typed_digest
from quorate.units import Address

__all__ = [
    "MAX_MEMBERS",
    "BindingSigner",
    "Change",
    "Identity",
    "Member",
    "Membership",
    "binding_digest",
    "with_change",
]

MAX_MEMBERS = 10
"""A service may grow to so many by joins: as far as rounds are measured (docs/benchmarks.md)."""

_DOMAIN = domain_separator("Quorate validator")
_TYPE = "Validator(string chain,bytes32 validatorKey,string node)"


class BindingSigner(Protocol):
    """The Ethereum key of an agent."""

    @property
    def address(self) -> Address:
        """Whose signature it makes."""
        ...

    def sign_digest(self, digest: bytes) -> bytes:
        """65 bytes: r, s, v (27 or 28)."""
        ...


def binding_digest(chain_id: str, validator_key: bytes, node_id: str) -> bytes:
    """What an agent signs to say: on `chain_id` this validator and this node are mine (EIP-712)."""
    return typed_digest(_DOMAIN, _TYPE, keccak(text=chain_id), validator_key, keccak(text=node_id))


@dataclass(frozen=True)
class Identity:
    """The public halves of the keys that CometBFT uses for one validator."""

    validator_key: bytes
    node_id: str


@dataclass(frozen=True)
class Member:
    """One agent as the genesis, or an agreed change, names it; byte strings in hex."""

    address: Address
    validator_key: str
    node_id: str
    binding: str

    @staticmethod
    def bind(identity: Identity, chain_id: str, signer: BindingSigner) -> Member:
        """The member whose address is `signer`'s."""
        signature = signer.sign_digest(binding_digest(chain_id, identity.validator_key, identity.node_id))
        return Member(signer.address, identity.validator_key.hex(), identity.node_id, signature.hex())

    @cached_property
    def validator_address(self) -> str:
        """How CometBFT names the validator in a commit: upper-case hex."""
        return hashlib.sha256(bytes.fromhex(self.validator_key)).hexdigest()[:40].upper()

    def problem(self, chain_id: str) -> str | None:
        """Why this is no member for `chain_id`: the address has not signed for these keys there. None where it has."""
        signed_by = None
        try:
            key = bytes.fromhex(self.validator_key)
            if (key.hex(), self.node_id.lower()) != (self.validator_key, self.node_id):
                return f"the keys of {self.address} are not written in small hex digits, so they could be written twice"
            signed_by = recover(binding_digest(chain_id, key, self.node_id), bytes.fromhex(self.binding))
        except ValueError:
            pass  # no hex, or a key that is not 32 bytes long: nobody has signed that
        if signed_by == self.address:
            return None
        said = "no valid one" if signed_by is None else f"of {signed_by}"
        return f"validator {self.validator_key} is bound to {self.address} on {chain_id}, but the signature is {said}"

    def check(self, chain_id: str) -> None:
        """Raise `ConfigError` where the address has not signed for these keys on this chain."""
        if (problem := self.problem(chain_id)) is not None:
            raise ConfigError(
                f"in the genesis of {chain_id} {problem}",
                fix="Have each agent sign its own validator key for this chain, and write the genesis anew.",
            )


@dataclass(frozen=True)
class Change:
    """Another set of members: `join` alone comes in, `leave` alone goes, both at once is a replacement.

    A member that gets new keys is replaced by itself.
    """

    join: Member | None = None
    leave: Address | None = None

    def made(self, members: Iterable[Member]) -> tuple[Member, ...]:
        """The members after the change, sorted by address."""
        stay = [one for one in members if one.address != self.leave]
        return tuple(sorted([*stay, *([self.join] if self.join else [])], key=lambda one: one.address))

    def problem(self, chain_id: str, members: Iterable[Member]) -> str | None:
        """Why `members` of the chain cannot change so; None where they can."""
        before = tuple(members)
        if self.join is None and self.leave is None:
            return "the change has neither somebody who joins nor somebody who leaves"
        if self.leave is not None and self.leave not in [one.address for one in before]:
            return f"{self.leave} is to leave, but is no member"
        if not 0 < len(after := self.made(before)) <= MAX_MEMBERS:
            return f"{len(after)} members would be left; a service has 1 to {MAX_MEMBERS}"
        if self.join is None:
            return None
        others = [one for one in after if one is not self.join]
        if self.join.address in [one.address for one in others]:
            return f"{self.join.address} is to join, but is a member"
        if self.join.validator_key in [one.validator_key for one in before]:
            return f"{self.join.address} is to join with the validator key of a member"
        if self.join.node_id in [one.node_id for one in others]:
            return f"{self.join.address} is to join with the node of another member"
        return self.join.problem(chain_id)

    def __str__(self) -> str:
        parts = [f"{self.join.address} joins"] if self.join else []
        return " and ".join([*parts, *([f"{self.leave} leaves"] if self.leave else [])]) or "nothing changes"


@dataclass(frozen=True)
class Membership(State):
    """The state of a service whose members may change while it runs. Both fields are set before the first block."""

    chain: str = keep("")
    """The id of the service's own chain: bindings are checked for it."""
    roster: tuple[Member, ...] = keep(())
    """The members, sorted by address. Whoever is in it when a round ends may send in the next one."""


M = TypeVar("M", bound=Membership)


def with_change(state: M, change: Change) -> M:
    """The state in which `change` is made. `ValueError` where it cannot be: ask `Change.problem` first."""
    if (problem := change.problem(state.chain, state.roster)) is not None:
        raise ValueError(problem)
    come = {change.join.address} if change.join else set()
    participants = tuple(sorted({*state.participants} - {change.leave} | come)) if state.participants else ()
    return replace(state, roster=change.made(state.roster), participants=participants)
