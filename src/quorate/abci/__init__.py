"""A service's own chain: an ABCI 2.0 server (usable alone), the application of a service, its CometBFT node.

# once, for all agents
genesis = make_testnet(homes, chain_id="hello-1", service=service, signers=wallets, ports=ports)

# in each agent
store = Store(home / "app.db", genesis.chain_id)
app = ServiceApp(service, genesis, me, store, agent)
async with Validator(app, home, binary, sockets) as validator:
    error = await validator.failed
"""

from __future__ import annotations

from quorate.abci.app import Agent, ServiceApp, Via
from quorate.abci.archive import Archive, Retention
from quorate.abci.genesis import BindingSigner, Genesis, Identity, Member, binding_digest, has_signed, make_identity
from quorate.abci.machine import opening_of, payload_for
from quorate.abci.node import Broadcast, Node, NodeExited, NodeUnreachable, Status
from quorate.abci.payload import MAX_BODY_BYTES, SignedPayload, UnsignedPayload, payload_digest
from quorate.abci.server import Application, Server, serve
from quorate.abci.statement import UnsignedStatement
from quorate.abci.store import Store
from quorate.abci.upgrade import Plan, Target, UpgradeDue, ask_for
from quorate.abci.validator import Validator, make_joiner, make_testnet

__all__ = [
    "MAX_BODY_BYTES",
    "Agent",
    "Application",
    "Archive",
    "BindingSigner",
    "Broadcast",
    "Genesis",
    "Identity",
    "Member",
    "Node",
    "NodeExited",
    "NodeUnreachable",
    "Plan",
    "Retention",
    "Server",
    "ServiceApp",
    "SignedPayload",
    "Status",
    "Store",
    "Target",
    "UnsignedPayload",
    "UnsignedStatement",
    "UpgradeDue",
    "Validator",
    "Via",
    "ask_for",
    "binding_digest",
    "has_signed",
    "make_identity",
    "make_joiner",
    "make_testnet",
    "opening_of",
    "payload_digest",
    "payload_for",
    "serve",
]
