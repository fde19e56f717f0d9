"""All that is fuzzed, by name."""

from __future__ import annotations

from tests.fuzz.abci_socket import AbciSocket
from tests.fuzz.answers import Answers
from tests.fuzz.engine import Target
from tests.fuzz.extensions import Extensions
from tests.fuzz.node_replies import NodeReplies
from tests.fuzz.payloads import Payloads
from tests.fuzz.receipts import Receipts
from tests.fuzz.rpc_replies import RpcReplies
from tests.fuzz.service_file import ServiceFile

__all__ = ["TARGETS"]

_ALL: tuple[type[Target], ...] = (
    AbciSocket,
    Payloads,
    Extensions,
    Receipts,
    ServiceFile,
    RpcReplies,
    NodeReplies,
    Answers,
)
TARGETS: dict[str, type[Target]] = {target.name: target for target in _ALL}
