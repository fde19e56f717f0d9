"""What an operator is started with: one JSON file, every value checked before anything is started.

Paths are taken from the file's folder. The keystore's passphrase is never in it: QUORATE_PASSPHRASE, or a file
descriptor that QUORATE_PASSPHRASE_FD names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eth_utils.address import is_checksum_address

from quorate.errors import ConfigError
from quorate.model.fields import TASKS, Task
from quorate.operator.model_server import ServedModel
from quorate.units import Address, Hash, Wei

__all__ = ["EvmConfig", "LimitsConfig", "ModelConfig", "OperatorConfig", "read_fields"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model that the operator serves: by a vLLM of its own, or by an OpenAI-compatible server that runs already."""

    name: str
    """What a request names, 1 to 64 bytes; all operators of a model give it the same name."""
    task: Task
    folder: Path | None = None
    """The model's files: their hashes are its manifest. Needed unless `upstream` and `manifest_hash` are given."""
    upstream: str | None = None
    """URL of a running server (without /v1), or unix:///its/socket; None: this operator starts vLLM itself."""
    manifest_hash: Hash | None = None
    """Only with `upstream` and without `folder`: the hash that the operator claims."""
    max_length: int | None = None
    """Most tokens of prompt and answer together; default 1024 (chat) or 256 (embedding)."""
    cache_mb: int = 256
    """Memory for attention's keys and values."""
    price_in: Wei = Wei(0)
    """For a million tokens of prompt, in units of 1e-18 token; as it is registered."""
    price_out: Wei = Wei(0)
    """For a million tokens of answer."""

    def __post_init__(self) -> None:
        where = f"model {self.name!r}"
        if not 1 <= len(self.name.encode()) <= 64:
            raise ConfigError(f"{where}: its name has {len(self.name.encode())} bytes; expected 1 to 64")
        if self.task not in TASKS.values():
            raise ConfigError(f"{where}: task is {self.task!r}; expected chat or embedding")
        if self.folder is None and (self.upstream is None or self.manifest_hash is None):
            raise ConfigError(f"{where} has no folder", fix="give folder, or upstream and manifest_hash")
        if self.folder is not None and self.manifest_hash is not None:
            raise ConfigError(f"{where} has a folder and a manifest_hash", fix="leave manifest_hash out")
        if self.manifest_hash is not None and not _is_hash(self.manifest_hash):
            raise ConfigError(f"{where}: manifest_hash is {self.manifest_hash!r}; expected 0x and 64 hex digits")
        if self.upstream is not None and urlsplit(self.upstream).scheme not in ("http", "https", "unix"):
            raise ConfigError(f"{where}: upstream is {self.upstream!r}; expected an http, https or unix URL")
        if not 64 <= self.length <= 1_000_000:
            raise ConfigError(f"{where}: max_length is {self.length}; expected 64 to 1000000 tokens")
        if not 16 <= self.cache_mb <= 1_000_000:
            raise ConfigError(f"{where}: cache_mb is {self.cache_mb}; expected 16 to 1000000")
        for name in ("price_in", "price_out"):
            if not 0 <= getattr(self, name) < 2**128:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}; expected 0 or more units of 1e-18 token")

    @property
    def length(self) -> int:
        """Most tokens of prompt and answer together."""
        if self.max_length is not None:
            return self.max_length
        return 1024 if self.task == "chat" else 256

    def served(self) -> ServedModel:
        """What this operator's own vLLM is started with."""
        if self.folder is None:
            raise ConfigError(f"model {self.name!r} has no folder to serve")
        return ServedModel(
            name=self.name,
            folder=self.folder,
            task=self.task,
            max_length=self.length,
            cache_mb=self.cache_mb if self.task == "chat" else 16,  # an embedding keeps nothing between tokens
        )


@dataclass(frozen=True, kw_only=True)
class EvmConfig:
    """The chain on which the operator has its stake."""

    url: str
    chain_id: int
    registry: Address

    def __post_init__(self) -> None:
        if not is_checksum_address(self.registry):
            raise ConfigError(f"evm.registry is {self.registry!r}; expected a checksummed address")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What one request may cost."""

    request_bytes: int = 128 * 1024
    answer_bytes: int = 8 * 1024 * 1024
    max_tokens: int = 512
    """Most tokens of an answer; also what a request without `max_tokens` gets, at most."""
    inputs: int = 64
    """Most texts of one embeddings request."""
    timeout_s: float = 120
    """For the model's answer, a stream's end included."""
    gap_s: float = 30
    """Longest silence of the model in a stream."""
    receipt_tokens: int = 16
    """A stream has a receipt after as many tokens at the latest; what a client has without one is given away."""
    receipt_s: float = 0.25
    """And after as many seconds, if there was text."""
    clock_skew_s: int = 60
    """How far a request's time may be from ours; its nonce is remembered that long."""
    at_once: int = 32
    """Most requests in progress; one more is told to come again."""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            if not getattr(self, one.name) > 0:
                raise ConfigError(f"limits.{one.name} is {getattr(self, one.name)}; expected more than 0")


@dataclass(frozen=True, kw_only=True)
class OperatorConfig:
    """CONFIG.json of `python -m quorate.operator CONFIG.json`."""

    name: str
    """How the events call this operator."""
    keystore: Path
    """The account that registers and stakes."""
    evm: EvmConfig
    models: tuple[ModelConfig, ...]
    events: Path
    """JSON lines are appended here: starting, models, registered, ready, stopped, error."""
    logs: Path
    """Folder for the model servers' logs."""
    key: Path | None = None
    """Keystore of the key that signs receipts, with the same passphrase; default: the account's own."""
    stake: Wei = Wei(0)
    """Units of 1e-18 token that are staked at least; 0: what the registry asks for."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: a free one."""
    endpoint: str | None = None
    """How clients reach us, as it is registered; default: http://HOST:PORT."""
    region: str = ""
    """Where the machine is, at most 31 bytes, as it is registered; empty: not said."""
    device_class: str = "cpu"
    """Which machine it is, 1 to 31 bytes, as it is registered: answers of one class are compared with one another."""
    model_python: Path | None = None
    """The model environment's Python; needed unless every model has an `upstream`."""
    clients: tuple[Address, ...] | None = None
    """Who may ask; None: whoever signs."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def __post_init__(self) -> None:
        names = [one.name for one in self.models]
        if not 1 <= len(names) <= 16 or len(set(names)) != len(names):
            raise ConfigError(f"models are {names}; expected 1 to 16 different names")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535")
        if self.stake < 0:
            raise ConfigError(f"stake is {self.stake}; expected 0 or more units of 1e-18 token")
        if self.host in ("0.0.0.0", "::", "") and self.endpoint is None:  # noqa: S104 (a comparison)
            raise ConfigError(
                f"host is {self.host!r} and endpoint is not given", fix="give endpoint: how clients reach this machine"
            )
        if self.endpoint is not None and urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise ConfigError(f"endpoint is {self.endpoint!r}; expected an http or https URL")
        if len(self.region.encode()) > 31:
            raise ConfigError(f"region has {len(self.region.encode())} bytes; expected at most 31")
        if not 1 <= len(self.device_class.encode()) <= 31:
            raise ConfigError(f"device_class has {len(self.device_class.encode())} bytes; expected 1 to 31")
        if self.model_python is None and any(one.upstream is None for one in self.models):
            raise ConfigError("model_python is not given", fix="give the model environment's Python, or upstreams")
        for client in self.clients or ():
            if not is_checksum_address(client):
                raise ConfigError(f"clients has {client!r}; expected checksummed addresses")

    @classmethod
    def load(cls, path: Path) -> OperatorConfig:
        """The configuration in a file; raises ConfigError, which names the file and the key."""
        try:
            raw = json.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON: {error}") from error
        try:
            return cls.from_json(raw, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", fix=error.fix) from error

    @classmethod
    def from_json(cls, raw: Any, folder: Path) -> OperatorConfig:
        """The configuration that JSON says, its relative paths taken from `folder`."""
        top = read_fields(cls, raw, "the file")
        top["evm"] = EvmConfig(**read_fields(EvmConfig, top["evm"], "evm"))
        models = top["models"] if isinstance(top["models"], list) else [top["models"]]
        top["models"] = tuple(_model(one, f"models[{place}]", folder) for place, one in enumerate(models))
        if "limits" in top:
            top["limits"] = LimitsConfig(**read_fields(LimitsConfig, top["limits"], "limits"))
        if top.get("clients") is not None:
            top["clients"] = tuple(top["clients"])
        for name in ("keystore", "events", "logs", "key", "model_python"):
            if top.get(name) is not None:
                top[name] = folder / top[name]
        return cls(**top)


def _model(raw: Any, where: str, folder: Path) -> ModelConfig:
    found = read_fields(ModelConfig, raw, where)
    if found.get("folder") is not None:
        found["folder"] = folder / found["folder"]
    return ModelConfig(**found)


# What JSON may hold for a field's annotation, which `from __future__ import annotations` leaves as text.
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "Path": (str,),
    "Address": (str,),
    "Hash": (str,),
    "int": (int,),
    "Wei": (int,),
    "float": (int, float),
    "EvmConfig": (dict,),
    "LimitsConfig": (dict,),
    "tuple[ModelConfig, ...]": (list,),
    "tuple[Address, ...]": (list,),
    "Task": (str,),
}


def read_fields(kind: type, raw: Any, where: str) -> dict[str, Any]:
    """The fields of a dataclass in a JSON object; unknown, missing and wrongly typed ones raise ConfigError."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} is no JSON object")
    known = {one.name: one for one in dataclasses.fields(kind)}
    if unknown := sorted(raw.keys() - known.keys()):
        raise ConfigError(f"{where} has the unknown key {unknown[0]!r}", fix=f"it takes {', '.join(known)}")
    for name, one in known.items():
        is_needed = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if name not in raw and is_needed:
            raise ConfigError(f"{where} has no {name!r}")
        if name in raw:
            _check_type(raw[name], str(one.type), f"{where}: {name}")
    return dict(raw)


def _check_type(value: object, annotation: str, where: str) -> None:
    inner = annotation.removesuffix(" | None")
    if value is None and inner != annotation:
        return
    allowed = _JSON_TYPES[inner]
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        words = " or ".join(sorted({one.__name__ for one in allowed}))
        raise ConfigError(f"{where} is {value!r}; expected {words}")


def _is_hash(text: str) -> bool:
    return len(text) == 66 and text.startswith("0x") and set(text[2:]) <= set("0123456789abcdef")
