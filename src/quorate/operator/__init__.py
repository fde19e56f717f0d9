"""What a GPU (or CPU) operator runs: a sidecar in front of its models, its stake, and the model servers themselves."""

from __future__ import annotations

from quorate.operator.config import EvmConfig, LimitsConfig, ModelConfig, OperatorConfig
from quorate.operator.manifest import compute_manifest_hash, hash_files, hash_folder
from quorate.operator.model_server import ModelServer, ServedModel, ServerEnded, available_memory, compute_memory_need
from quorate.operator.run import serve
from quorate.operator.sidecar import Identity, Sidecar, Upstream
from quorate.operator.stake import Place, ensure_staked

__all__ = [
    "EvmConfig",
    "Identity",
    "LimitsConfig",
    "ModelConfig",
    "ModelServer",
    "OperatorConfig",
    "Place",
    "ServedModel",
    "ServerEnded",
    "Sidecar",
    "Upstream",
    "available_memory",
    "compute_manifest_hash",
    "compute_memory_need",
    "ensure_staked",
    "hash_files",
    "hash_folder",
    "serve",
]
