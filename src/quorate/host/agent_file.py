"""What one agent is started with: `agent.json` in its home. It holds no secret; the keystore's passphrase comes by
the environment.

Relative paths are meant from the home, except `service`, which is meant from the project's root.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from eth_utils.address import is_checksum_address

from quorate.durable import replace_file
from quorate.errors import ConfigError
from quorate.units import Address

__all__ = ["AgentFile", "EvmSettings"]

FILE_NAME = "agent.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_SERVICE = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*")
_MAX_CHAIN_ID = 50  # CometBFT's own limit
_MAX_SOCKET_PATH = 100  # the kernel's limit is 108
_CONTROL = "control.sock"
_LONGEST_SOCKET_NAME = len(f"/{_CONTROL}")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EvmSettings:
    """The EVM chain that the service acts on, and the contracts that it may know there."""

    url: str
    chain_id: int
    safe: Address
    governor: Address
    token: Address
    timelock: Address
    registry: Address
    confirmations: int = 10
    """How many blocks must stand on what the Safe did before it counts. 0 suits a chain that never reorganises."""
    max_fee_gwei: int = 500
    """The most that this agent pays for a unit of gas."""
    reprice_s: int = 15
    """A transaction that is not mined after so long is sent again with higher fees."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"evm.url is {self.url!r}; expected an http(s) address of a node")
        if self.chain_id < 1:
            raise ConfigError(f"evm.chain_id is {self.chain_id}; expected a positive number")
        for name, least in (("confirmations", 0), ("max_fee_gwei", 1), ("reprice_s", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"evm.{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("safe", "governor", "token", "timelock", "registry"):
            _check_address(f"evm.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class AgentFile:
    """What one agent is started with."""

    home: Path
    """Where agent.json lies and the agent keeps its state; not written into the file, so a home may be moved."""
    service: str
    """The service's folder, from the project's root: `services/hello_world`."""
    name: str
    """What the agent is called in logs and events: `agent-1`."""
    me: Address
    keystore: Path
    chain_id: str
    """Of the service's own chain (CometBFT), the same for all its agents."""
    socket_dir: Path
    """A short folder of this agent's own for its unix sockets: two between it and its node, and `control`."""
    comet_home: Path
    cometbft: Path
    """CometBFT's program."""
    p2p_port: int
    """Where this agent's node listens for the other agents' nodes."""
    events: Path
    """JSON lines of what happens (see quorate.events)."""
    evidence_dir: Path
    """Where the agent keeps the texts and receipts behind what was agreed on."""
    peers: tuple[str, ...] = ()
    """RPC addresses of the other agents' nodes (`unix:///folder/rpc.sock`, `http://host:port` in a private network).

    With them the agent writes snapshots, prunes old blocks, and can take a snapshot when it has lost its state. Without
    them it keeps every block. All agents of a service should have them, or none.
    """
    joins: bool = False
    """True for an agent that the genesis does not name: it follows the chain until a quorum has let it in."""
    next: str = ""
    """The folder of the version that it goes on with from when the members have agreed on that one."""
    evm: EvmSettings | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the service's own configuration (service.yaml)."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"name is {self.name!r}; expected up to 31 small letters, digits and hyphens")
        for name, folder in (("service", self.service), ("next", self.next or self.service)):
            if not _SERVICE.fullmatch(folder):
                raise ConfigError(f"{name} is {folder!r}; expected a folder like services/hello_world")
        if not 0 < len(self.chain_id.encode()) <= _MAX_CHAIN_ID:
            raise ConfigError(f"chain_id {self.chain_id!r} has not 1 to {_MAX_CHAIN_ID} bytes")
        if not 0 < self.p2p_port < 65536:
            raise ConfigError(f"p2p_port is {self.p2p_port}; expected 1 to 65535")
        if len(str(self.socket_dir).encode()) + _LONGEST_SOCKET_NAME > _MAX_SOCKET_PATH:
            raise ConfigError(
                f"socket_dir is {self.socket_dir}: with a socket's name that is over {_MAX_SOCKET_PATH} bytes",
                fix="choose a folder with a shorter path",
            )
        _check_address("me", self.me)

    @property
    def control(self) -> Path:
        """The socket by which this machine's user tells the running agent something (quorate.host.control)."""
        return self.socket_dir / _CONTROL

    @classmethod
    def load(cls, home: Path) -> AgentFile:
        """Read `home`/agent.json; raises `ConfigError` that names the field that is wrong."""
        home = home.absolute()
        path = home / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as JSON: {error}", fix="name the home of an agent") from error
        try:
            evm = values.pop("evm", None) if isinstance(values, dict) else None
            read = _record(cls, {**_object("the file", values), "home": str(home)})
            loaded = cls(**read, evm=None if evm is None else EvmSettings(**_record(EvmSettings, _object("evm", evm))))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", fix=error.fix) from error
        return replace(loaded, **{name: home / getattr(loaded, name) for name in _PATHS})

    def save(self) -> Path:
        """Write `home`/agent.json and return its path; the agent may be running, and is started again with it."""
        values = {name: _plain(value) for name, value in asdict(self).items() if name != "home"}
        path = self.home / FILE_NAME
        self.home.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
        return path


_PATHS = tuple(item.name for item in fields(AgentFile) if item.type == "Path" and item.name != "home")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "Path": str,
    "str": str,
    "Address": str,
    "int": int,
    "bool": bool,
    "tuple[str, ...]": list,
    "Mapping[str, Any]": dict,
}


def _object(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is {value!r}; expected a JSON object")
    return value


def _record(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments for the dataclass `kind`: every field known, present if it must be, and of its type."""
    known = {item.name: item for item in fields(kind) if item.name != "evm"}
    if unknown := sorted(values.keys() - known.keys()):
        raise ConfigError(f"unknown field {', '.join(unknown)}; known are {', '.join(known)}")
    required = {name for name, item in known.items() if _is_required(item)}
    if missing := sorted(required - values.keys()):
        raise ConfigError(f"{', '.join(missing)} is missing")
    for name, value in values.items():
        expected = _KINDS[str(known[name].type)]
        if not isinstance(value, expected) or isinstance(value, bool) is not (expected is bool):
            raise ConfigError(f"{name} is {value!r}; expected {known[name].type}")
    return {name: _read(str(known[name].type), value) for name, value in values.items()}


def _read(kind: str, value: Any) -> Any:
    if kind == "tuple[str, ...]":
        if wrong := [item for item in value if not isinstance(item, str)]:
            raise ConfigError(f"{wrong[0]!r} is no text")
        return tuple(value)
    return Path(value) if kind == "Path" else value


def _is_required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _check_address(name: str, value: str) -> None:
    if not is_checksum_address(value):
        raise ConfigError(
            f"{name} is {value!r}; expected an address of 0x and 40 hex digits with its checksum (EIP-55)"
        )
