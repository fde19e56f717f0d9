"""Calls of models on staked operators: every answer carries a receipt signed by somebody with something to lose."""

from __future__ import annotations

from quorate.model.client import Answer, Attempt, Embedding, Limits, ModelClient, NoAnswer, Registry
from quorate.model.receipt import RECEIPT_HEADER, Receipt, SignedReceipt, hash_of
from quorate.model.request import AUTH_HEADER, Authorization, ModelRequest, RequestSigner, WalletSigner
from quorate.model.schema import Schema, parse_json

__all__ = [
    "AUTH_HEADER",
    "RECEIPT_HEADER",
    "Answer",
    "Attempt",
    "Authorization",
    "Embedding",
    "Limits",
    "ModelClient",
    "ModelRequest",
    "NoAnswer",
    "Receipt",
    "Registry",
    "RequestSigner",
    "Schema",
    "SignedReceipt",
    "WalletSigner",
    "hash_of",
    "parse_json",
]
