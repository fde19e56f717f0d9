"""Members with keys that exist only in tests: the same at every run."""

from __future__ import annotations

import hashlib

from quorate.abci import Genesis
from quorate.fsm import Service
from quorate.members import Identity, Member
from tests.chain_of_agents.keys import Key
from tests.chain_of_agents.services import moving

__all__ = ["CHAIN", "KEYS", "genesis_of", "member", "records"]

CHAIN = "chain-1"
KEYS = tuple(sorted((Key(f"member {index}") for index in range(16)), key=lambda key: key.address))


def member(index: int, generation: int = 0, chain: str = CHAIN) -> Member:
    """The agent `index` with its `generation`-th validator."""
    seed = f"{index}/{generation}".encode()
    identity = Identity(hashlib.sha256(b"validator" + seed).digest(), hashlib.sha256(b"node" + seed).hexdigest()[:40])
    return Member.bind(identity, chain, KEYS[index])


def records(*indexes: int) -> tuple[Member, ...]:
    return tuple(member(index) for index in sorted(indexes))


def genesis_of(n: int, service: Service = moving) -> Genesis:
    return Genesis(CHAIN, service.name, service.spec_hash, "", records(*range(n)), "2026-01-01T00:00:00Z")
