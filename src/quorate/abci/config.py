"""CometBFT's config.toml for one validator: only what differs from its defaults, each with the reason.

The two unix sockets are given on the node's command line, so a home may be moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quorate.abci.transaction import MAX_TX_BYTES
from quorate.durable import replace_file

__all__ = ["Peer", "render", "save"]

HEARTBEAT_S = 30
"""A sleeping chain still makes a block this often: the net beneath ticks and wake transactions."""


@dataclass(frozen=True)
class Peer:
    """Where a validator's node listens for the others."""

    node_id: str
    port: int
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        """ID@HOST:PORT, as CometBFT writes a peer."""
        return f"{self.node_id}@{self.host}:{self.port}"


def render(me: Peer, peers: Sequence[Peer], settings: Mapping[str, str] | None = None) -> str:
    """The text of config.toml. `settings` replace values by "section.key", written as TOML (for tests, benchmarks)."""
    others = ",".join(peer.address for peer in peers if peer.node_id != me.node_id)
    # The application refuses every node that is not in the genesis (filter_peers), so pex and the address book are off.
    # Gossip and flush sleep 5 ms instead of 100: CometBFT's own defaults cost 370 ms a round.
    # prevote/precommit/commit wait for stragglers only; with one agent dead, 20 ms halve the cost of its turn.
    # create_empty_blocks: the chain sleeps when nothing happens. recheck: a stale payload would keep it awake for ever.
    values = {
        ".moniker": f'"{me.node_id[:8]}"',
        ".log_level": '"error"',
        ".filter_peers": "true",
        "rpc.max_open_connections": "16",
        "p2p.laddr": f'"tcp://{me.host}:{me.port}"',
        "p2p.persistent_peers": f'"{others}"',
        "p2p.persistent_peers_max_dial_period": '"3s"',
        "p2p.pex": "false",
        "p2p.addr_book_strict": "false",
        "p2p.allow_duplicate_ip": "true",
        "p2p.flush_throttle_timeout": '"5ms"',
        "mempool.recheck": "true",
        "mempool.size": "2000",
        "mempool.cache_size": "4000",
        "mempool.max_tx_bytes": str(MAX_TX_BYTES),
        "consensus.timeout_propose": '"300ms"',
        "consensus.timeout_propose_delta": '"100ms"',
        "consensus.timeout_prevote": '"20ms"',
        "consensus.timeout_prevote_delta": '"50ms"',
        "consensus.timeout_precommit": '"20ms"',
        "consensus.timeout_precommit_delta": '"50ms"',
        "consensus.timeout_commit": '"0s"',
        "consensus.skip_timeout_commit": "true",
        "consensus.create_empty_blocks": "false",
        "consensus.create_empty_blocks_interval": f'"{HEARTBEAT_S}s"',
        "consensus.peer_gossip_sleep_duration": '"5ms"',
        "consensus.peer_query_maj23_sleep_duration": '"500ms"',
        "tx_index.indexer": '"null"',
        # State sync is switched on by the environment, for the start of an agent that has lost its state (anchor.py);
        # CometBFT reads from there only what stands here too.
        "statesync.enable": "false",
        "statesync.rpc_servers": '""',
        "statesync.trust_height": "0",
        "statesync.trust_hash": '""',
        "statesync.trust_period": '"168h"',
        "statesync.discovery_time": '"1s"',
        **(settings or {}),
    }
    sections: dict[str, list[str]] = {}
    for name, value in values.items():
        section, key = name.split(".", 1)
        sections.setdefault(section, []).append(f"{key} = {value}")
    return (
        "\n".join((f"\n[{section}]\n" if section else "") + "\n".join(lines) for section, lines in sections.items())
        + "\n"
    )


def save(home: Path, me: Peer, peers: Sequence[Peer], settings: Mapping[str, str] | None = None) -> None:
    """Write `home`/config/config.toml; ports may change between two lives of a node, its identity does not."""
    path = home / "config" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, render(me, peers, settings).encode(), is_synced=False)
