"""EVM chains: a client, wallets, the agents' Safe, our contracts as types, and what a proposal's action would do."""

from __future__ import annotations

from quorate.chain.abi import Abi, UndecodableError, load_abi, selector_of
from quorate.chain.client import Block, Chain, Fees, Log, NonceTooLow, Receipt, Signed
from quorate.chain.contracts import (
    ABSTAIN,
    AGAINST,
    FOR,
    Governor,
    Model,
    Offer,
    Operator,
    OperatorRegistry,
    Proposal,
    ProposalState,
    Support,
    Tally,
    Timelock,
    Token,
    VoteCast,
    compute_proposal_id,
)
from quorate.chain.decode import Action, AddressBook, Kind, TokenUnit, decode_action, decode_actions
from quorate.chain.owners import is_owner_change, owner_calls
from quorate.chain.payments import Channel, Closing, InferencePayments, Redemption, SignedVoucher, Voucher
from quorate.chain.revert import CallReverted, Refusal
from quorate.chain.safe import Execution, Safe, SafeTransaction
from quorate.chain.wallet import Wallet, read_passphrase

__all__ = [
    "ABSTAIN",
    "AGAINST",
    "FOR",
    "Abi",
    "Action",
    "AddressBook",
    "Block",
    "CallReverted",
    "Chain",
    "Channel",
    "Closing",
    "Execution",
    "Fees",
    "Governor",
    "InferencePayments",
    "Kind",
    "Log",
    "Model",
    "NonceTooLow",
    "Offer",
    "Operator",
    "OperatorRegistry",
    "Proposal",
    "ProposalState",
    "Receipt",
    "Redemption",
    "Refusal",
    "Safe",
    "SafeTransaction",
    "Signed",
    "SignedVoucher",
    "Support",
    "Tally",
    "Timelock",
    "Token",
    "TokenUnit",
    "UndecodableError",
    "VoteCast",
    "Voucher",
    "Wallet",
    "compute_proposal_id",
    "decode_action",
    "decode_actions",
    "is_owner_change",
    "load_abi",
    "owner_calls",
    "read_passphrase",
    "selector_of",
]
