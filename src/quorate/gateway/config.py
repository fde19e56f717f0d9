"""What a gateway is started with: one JSON file, every value checked before anything is started.

Paths are taken from the file's folder. The keystore's passphrase is never in it: QUORATE_PASSPHRASE, or a file
descriptor that QUORATE_PASSPHRASE_FD names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.errors import ConfigError
from quorate.operator.config import EvmConfig, read_fields

__all__ = ["GatewayConfig"]


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """CONFIG.json of `./quorate gateway start CONFIG.json`."""

    keystore: Path
    """The account in whose name operators are asked."""
    evm: EvmConfig
    """The chain with the registry of operators."""
    keys: Path = Path("keys.json")
    """Who may ask (`./quorate gateway key`)."""
    ledger: Path = Path("ledger.jsonl")
    """What each key has used."""
    host: str = "127.0.0.1"
    port: int = 8402
    """0: a free one."""
    max_tokens: int = 512
    """Of an answer whose request does not say."""
    request_bytes: int = 96 * 1024
    """Below what operators take: who continues an answer has to be sent that, too."""
    at_once: int = 256
    """Most requests in progress; one more is told to come again."""
    timeout_s: float = 120
    """For one operator's answer."""
    gap_s: float = 15
    """Longest silence in a stream before another operator goes on with it, or of a reader before it is left."""
    drain_s: float = 10
    """How long answers in progress may take when the gateway is told to stop."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535")
        for name in ("max_tokens", "request_bytes", "at_once", "timeout_s", "gap_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")

    @classmethod
    def load(cls, path: Path) -> GatewayConfig:
        """The configuration in a file; raises ConfigError, which names the file and the key."""
        try:
            return cls.from_json(json.loads(path.read_text()), path.parent)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", fix=error.fix) from error

    @classmethod
    def from_json(cls, raw: Any, folder: Path) -> GatewayConfig:
        """The configuration that JSON says, its relative paths taken from `folder`."""
        top = read_fields(cls, raw, "the file")
        top["evm"] = EvmConfig(**read_fields(EvmConfig, top["evm"], "evm"))
        for name in ("keystore", "keys", "ledger"):
            top[name] = folder / top.get(name, getattr(cls, name, name))
        return cls(**top)
