"""What the agents of a service agree on before the first block: the chain's id, the service, and its first members."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from quorate.durable import replace_file
from quorate.errors import ConfigError
from quorate.fsm import Service
from quorate.members import BindingSigner, Identity, Member, binding_digest
from quorate.units import Address

__all__ = ["POWER", "BindingSigner", "Genesis", "Identity", "Member", "binding_digest", "has_signed", "make_identity"]

POWER = 20
"""Voting power of a validator. Keep every power even: with CometBFT's 1, f old clocks of 3f+1 set the block time."""
MAX_BLOCK_BYTES = 4 * 1024 * 1024
MAX_CHAIN_ID_BYTES = 50  # CometBFT's own limit


@dataclass(frozen=True)
class Genesis:
    """The agreed beginning of a service's chain. Members may change later (`quorate.members`); this stays."""

    chain_id: str
    service: str
    spec_hash: str
    config_hash: str
    """Hash of what the operators configured alike; the host compares it with its own."""
    members: tuple[Member, ...]
    """Sorted by address."""
    time: str
    """RFC 3339, UTC."""
    has_landmarks: bool = False
    """Whether the chain remembers which app hash its last blocks led to; those from before 2026-11-24 do not."""

    @staticmethod
    def create(chain_id: str, service: Service, members: Sequence[Member], config_hash: str = "") -> Genesis:
        """A genesis that begins now."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ordered = tuple(sorted(members, key=lambda member: member.address))
        genesis = Genesis(chain_id, service.name, service.spec_hash, config_hash, ordered, now, has_landmarks=True)
        genesis.check(service)
        return genesis

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The members' addresses, in the order of the members."""
        return tuple(member.address for member in self.members)

    def check(self, service: Service) -> None:
        """Raise `ConfigError` where this is not `service`'s genesis, or a member is not what it claims to be.

        A later version of the service may have another specification than the chain began with; what its members
        agreed on is said by the stored state alone.
        """
        if not 0 < len(self.chain_id.encode()) <= MAX_CHAIN_ID_BYTES:
            raise ConfigError(
                f"the chain id {self.chain_id!r} has not 1 to {MAX_CHAIN_ID_BYTES} bytes", fix="Choose another one."
            )
        if self.service != service.name or (service.version == 1 and self.spec_hash != service.spec_hash):
            raise ConfigError(
                f"the genesis of {self.chain_id} is for the service {self.service} with the specification "
                f"{self.spec_hash}; this code is {service.name} with {service.spec_hash}",
                fix="Run the version of the service that the chain was started with, or start a new chain.",
            )
        if not self.members or list(self.addresses) != sorted(self.addresses):
            raise ConfigError(f"the genesis of {self.chain_id} has no members, or not in the order of their addresses")
        for values in (self.addresses, [m.validator_key for m in self.members], [m.node_id for m in self.members]):
            if len(set(values)) != len(self.members):
                raise ConfigError(
                    f"two members of {self.chain_id} share an address, a validator key or a node: {values}"
                )
        for member in self.members:
            member.check(self.chain_id)

    def app_state(self) -> dict[str, Any]:
        """Our part of genesis.json."""
        state = {
            "service": self.service,
            "spec_hash": self.spec_hash,
            "config_hash": self.config_hash,
            "members": [asdict(member) for member in self.members],
        }
        return {**state, "landmarks": True} if self.has_landmarks else state

    def document(self) -> dict[str, Any]:
        """genesis.json as CometBFT reads it."""
        return {
            "genesis_time": self.time,
            "chain_id": self.chain_id,
            "initial_height": "1",
            "consensus_params": {
                "block": {"max_bytes": str(MAX_BLOCK_BYTES), "max_gas": "-1"},
                "evidence": {
                    "max_age_num_blocks": "100000",
                    "max_age_duration": "172800000000000",
                    "max_bytes": "65536",
                },
                "validator": {"pub_key_types": ["ed25519"]},
                "version": {"app": "0"},
                "abci": {"vote_extensions_enable_height": "1"},
            },
            "validators": [
                {
                    "address": member.validator_address,
                    "pub_key": {
                        "type": "tendermint/PubKeyEd25519",
                        "value": _base64(bytes.fromhex(member.validator_key)),
                    },
                    "power": str(POWER),
                    "name": member.address,
                }
                for member in self.members
            ],
            "app_hash": "",
            "app_state": self.app_state(),
        }

    def save(self, home: Path) -> None:
        """Write `home`/config/genesis.json."""
        path = home / "config" / "genesis.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.document(), indent=2) + "\n")

    @staticmethod
    def load(home: Path) -> Genesis:
        """Read `home`/config/genesis.json; `ConfigError` where it is missing or not one of ours."""
        path = home / "config" / "genesis.json"
        try:
            return Genesis.parse(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is not the genesis of a service: {type(error).__name__}: {error}",
                fix="Copy the genesis.json that the other agents of the service use.",
            ) from error

    @staticmethod
    def parse(document: dict[str, Any]) -> Genesis:
        """The genesis in a genesis.json; `check` it before it is believed."""
        state = document["app_state"]
        members = tuple(Member(**member) for member in state["members"])
        return Genesis(
            document["chain_id"],
            state["service"],
            state["spec_hash"],
            state["config_hash"],
            members,
            document["genesis_time"],
            has_landmarks=state.get("landmarks") is True,
        )


def make_identity(home: Path) -> Identity:
    """Make the validator's and the node's keys in `home`, unless they are there, and return their public halves.

    An existing key is never replaced: a validator that lost its signing state could sign two blocks of one height.
    """
    config, data = home / "config", home / "data"
    validator = _load_or_make(config / "priv_validator_key.json", _validator_key_document)
    node = _load_or_make(config / "node_key.json", lambda key: {"priv_key": _private(key)})
    state = data / "priv_validator_state.json"
    if not state.exists():
        _write_private(state, {"height": "0", "round": 0, "step": 0})
    return Identity(_public_bytes(validator), _short_hash(_public_bytes(node)).hex())


def has_signed(home: Path) -> bool:
    """True where the validator in `home` has voted in some block, whatever else is left there."""
    path = home / "data" / "priv_validator_state.json"
    try:
        return int(json.loads(path.read_text())["height"]) > 0
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}",
            fix="Restore it from your backup; a validator without it could sign two blocks of one height.",
        ) from error


def _load_or_make(path: Path, document: Any) -> Ed25519PrivateKey:
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        _write_private(path, document(key))
        return key
    try:
        secret = base64.b64decode(json.loads(path.read_text())["priv_key"]["value"], validate=True)
        return Ed25519PrivateKey.from_private_bytes(secret[:32])
    except (ValueError, KeyError, TypeError) as error:  # the message names no part of the key
        raise ConfigError(
            f"{path} holds no ed25519 key of CometBFT", fix="Restore it from your backup; do not make a new one."
        ) from error


def _validator_key_document(key: Ed25519PrivateKey) -> dict[str, Any]:
    public = _public_bytes(key)
    return {
        "address": _short_hash(public).hex().upper(),
        "pub_key": {"type": "tendermint/PubKeyEd25519", "value": _base64(public)},
        "priv_key": _private(key),
    }


def _private(key: Ed25519PrivateKey) -> dict[str, str]:
    seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return {"type": "tendermint/PrivKeyEd25519", "value": _base64(seed + _public_bytes(key))}


def _write_private(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, (json.dumps(document, indent=2) + "\n").encode(), mode=0o600, is_synced=False)


def _public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _short_hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:20]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
