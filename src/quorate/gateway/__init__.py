"""One OpenAI-compatible endpoint in front of all staked operators."""

from __future__ import annotations

from quorate.gateway.api_keys import ApiKey, KeyFile
from quorate.gateway.config import GatewayConfig
from quorate.gateway.ledger import Ledger, Usage
from quorate.gateway.registry import KnownRegistry
from quorate.gateway.run import serve
from quorate.gateway.server import Gateway

__all__ = ["ApiKey", "Gateway", "GatewayConfig", "KeyFile", "KnownRegistry", "Ledger", "Usage", "serve"]
