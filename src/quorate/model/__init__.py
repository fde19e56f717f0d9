"""Calls of models on staked operators: every answer carries a receipt signed by somebody with something to lose."""

from __future__ import annotations

from quorate.model.call import Attempt, Declined, Limits, NoAnswer, Payer, Registry
from quorate.model.client import Answer, Embedding, Forwarded, ModelClient
from quorate.model.receipt import RECEIPT_HEADER, Receipt, SignedReceipt, hash_of
from quorate.model.request import AUTH_HEADER, Authorization, ModelRequest, RequestSigner, WalletSigner
from quorate.model.routing import Measured, Router
from quorate.model.schema import Schema, parse_json
from quorate.model.stream import Segment, Stream

__all__ = [
    "AUTH_HEADER",
    "RECEIPT_HEADER",
    "Answer",
    "Attempt",
    "Authorization",
    "Declined",
    "Embedding",
    "Forwarded",
    "Limits",
    "Measured",
    "ModelClient",
    "ModelRequest",
    "NoAnswer",
    "Payer",
    "Receipt",
    "Registry",
    "RequestSigner",
    "Router",
    "Schema",
    "Segment",
    "SignedReceipt",
    "Stream",
    "WalletSigner",
    "hash_of",
    "parse_json",
]
