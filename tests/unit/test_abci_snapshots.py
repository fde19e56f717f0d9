"""Snapshots: what is kept and offered, and that nobody makes an agent adopt a state that the chain never had."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.abci import Archive, NodeUnreachable, Retention, ServiceApp, Store, anchor, validator
from quorate.abci.archive import CHUNK_BYTES, FORMAT, MAX_CHUNKS, Incoming, Snapshot
from quorate.abci.machine import Replica
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.errors import ConfigError, PeerError
from tests.chain_of_agents.services import counting
from tests.unit.member_records import genesis_of
from tests.unit.scripted_consensus import Consensus

SMALL = Retention(blocks=8, snapshot_every=2, snapshots=3)
OFFER, APPLY = pb.ResponseOfferSnapshot, pb.ResponseApplySnapshotChunk


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.abci.app._QUIET_S", 0.02)


def test_only_the_newest_snapshots_are_kept_and_blocks_far_below_them_may_go(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "snapshots", SMALL)
    may_go = {height: archive.committed(height, b"%d" % height) for height in range(1, 14)}
    assert archive.heights() == [8, 10, 12]
    assert may_go[7] == 0, "blocks are pruned together with a snapshot, not one by one"
    assert may_go[6] == 0
    assert [may_go[height] for height in (8, 10, 12)] == [1, 3, 5]
    assert all(may_go[height] <= min(archive.heights()) for height in may_go)


def test_a_snapshot_is_offered_once_two_headers_prove_it(tmp_path: Path) -> None:
    """The light client asks for headers h + 1 and h + 2; in a sleeping chain they come only with the next news."""
    archive = Archive(tmp_path, SMALL)
    archive.committed(4, b"four")
    archive.committed(6, b"six")
    assert [snapshot.height for snapshot in archive.offers(7)] == [4]
    assert [snapshot.height for snapshot in archive.offers(8)] == [4, 6]


@pytest.mark.parametrize("kept", [{"blocks": 7}, {"snapshot_every": 0}, {"snapshots": 0}])
def test_a_retention_that_would_strand_receivers_is_refused(kept: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Retention(**{"blocks": 8, "snapshot_every": 2, "snapshots": 3, **kept})


@given(st.binary(max_size=3 * 64))
def test_chunks_make_the_whole_again_in_any_order(whole: bytes) -> None:
    parts = [whole[at : at + 64] for at in range(0, len(whole), 64)] or [b""]
    incoming = Incoming(Snapshot(4, hashlib.sha256(whole).digest(), len(parts)), b"")
    found = [incoming.put(index, parts[index]) for index in reversed(range(len(parts)))]
    assert found[-1] == whole
    assert found[:-1] == [None] * (len(parts) - 1)


@pytest.mark.parametrize(("index", "chunk"), [(2, b""), (-1, b""), (0, bytes(CHUNK_BYTES + 1))])
def test_a_chunk_that_was_not_offered_is_refused(index: int, chunk: bytes) -> None:
    with pytest.raises(PeerError, match="chunk"):
        Incoming(Snapshot(4, bytes(32), 2), b"").put(index, chunk)


@pytest.mark.parametrize("chunks", [0, MAX_CHUNKS + 1])
def test_a_snapshot_of_too_many_chunks_is_refused(chunks: int) -> None:
    with pytest.raises(PeerError, match="chunks"):
        Incoming(Snapshot(4, bytes(32), chunks), b"")


class _Pair:
    """A chain whose first agent has snapshots, and an agent without state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain = Consensus(folder)
        self.giver = self.chain.apps[0]
        self.giver.archive = Archive(folder / "given", SMALL)
        self.store = Store(folder / "fresh.db", "chain-1")
        self.fresh = ServiceApp(
            counting,
            self.chain.genesis,
            self.chain.keys[3].address,
            self.store,
            self.chain.agents[3],
            archive=Archive(folder / "taken", SMALL),
        )

    def start_again(self) -> ServiceApp:
        """As after kill -9."""
        store = Store(self.folder / "fresh.db", "chain-1")
        archive = Archive(self.folder / "taken", SMALL)
        return ServiceApp(
            counting, self.chain.genesis, self.chain.keys[3].address, store, self.chain.agents[3], archive=archive
        )

    async def snapshot(self) -> tuple[pb.Snapshot, bytes, bytes]:
        """The newest snapshot, its only chunk, and the app hash that the chain had there."""
        offers = (await self.giver.list_snapshots(pb.RequestListSnapshots())).snapshots
        newest = max(offers, key=lambda offer: offer.height)
        request = pb.RequestLoadSnapshotChunk(height=newest.height, format=FORMAT, chunk=0)
        chunk = (await self.giver.load_snapshot_chunk(request)).chunk
        return newest, chunk, self.chain.hashes[newest.height]

    async def give(self, offer: pb.Snapshot, chunk: bytes, app_hash: bytes) -> int:
        answer = await self.fresh.offer_snapshot(pb.RequestOfferSnapshot(snapshot=offer, app_hash=app_hash))
        assert answer.result == OFFER.ACCEPT
        result: int = (await self.fresh.apply_snapshot_chunk(pb.RequestApplySnapshotChunk(chunk=chunk))).result
        return result


@pytest.fixture
async def pair(tmp_path: Path) -> Any:
    pair = _Pair(tmp_path)
    await pair.chain.init()
    for _ in range(11):
        await pair.chain.block()
    yield pair
    await pair.fresh.stop()
    await pair.chain.close()


async def test_an_agent_without_state_adopts_a_snapshot_and_goes_on_from_there(pair: _Pair) -> None:
    offer, chunk, app_hash = await pair.snapshot()
    assert offer.height == 8
    assert await pair.give(offer, chunk, app_hash) == APPLY.ACCEPT
    info = await pair.fresh.info(pb.RequestInfo())
    assert (info.last_block_height, info.last_block_app_hash) == (8, app_hash)
    assert Replica.decode(counting, pair.store.load() or b"").height == 8, "it is durable"


async def test_an_agent_that_dies_before_a_block_follows_its_snapshot_begins_anew(pair: _Pair) -> None:
    """CometBFT may have no note of the snapshot then, and would not start beside an application that is ahead of it."""
    assert await pair.give(*await pair.snapshot()) == APPLY.ACCEPT
    again = pair.start_again()
    assert (again.height, again.has_half_a_snapshot) == (0, True)
    pair.store.save(pair.store.load() or b"")  # as the next Commit does
    again = pair.start_again()
    assert (again.height, again.has_half_a_snapshot) == (8, False)


async def test_a_state_that_the_chain_never_had_is_not_adopted(pair: _Pair) -> None:
    """Also where the liar makes the hashes in the offer and in the snapshot fit his state."""
    offer, chunk, app_hash = await pair.snapshot()
    true = Replica.decode(counting, chunk)
    state = replace(true.period.state, value=1000)  # type: ignore[call-arg]  # the test service's own state
    lies = [
        replace(true, period=replace(true.period, state=state)).encode(),
        replace(true, height=6).encode(),
        replace(true, demoted="A").encode(),
        b"[" * 100_000,
        json.dumps([1, 2, 3]).encode(),
        chunk[:-5],
    ]
    for lie in lies:
        forged = pb.Snapshot(height=8, format=FORMAT, chunks=1, hash=hashlib.sha256(lie).digest())
        assert await pair.give(forged, lie, app_hash) == APPLY.REJECT_SNAPSHOT
        assert pair.fresh.height == 0
        assert pair.store.load() is None
    assert await pair.give(offer, chunk + b" ", app_hash) == APPLY.REJECT_SNAPSHOT
    assert await pair.give(offer, chunk, app_hash) == APPLY.ACCEPT, "a liar does not keep the next one from being taken"


async def test_whoever_has_a_state_keeps_it(pair: _Pair) -> None:
    offer, chunk, app_hash = await pair.snapshot()
    request = pb.RequestOfferSnapshot(snapshot=offer, app_hash=app_hash)
    assert (await pair.giver.offer_snapshot(request)).result == OFFER.ABORT
    answer = await pair.giver.apply_snapshot_chunk(pb.RequestApplySnapshotChunk(chunk=chunk))
    assert answer.result == APPLY.ABORT
    assert (await pair.chain.apps[1].list_snapshots(pb.RequestListSnapshots())).snapshots == []
    unknown = pb.RequestOfferSnapshot(snapshot=pb.Snapshot(height=8, format=9, chunks=1), app_hash=app_hash)
    assert (await pair.fresh.offer_snapshot(unknown)).result == OFFER.REJECT_FORMAT


class _Peers:
    """Four nodes' RPC answers; `None` is a node that does not answer."""

    def __init__(self, **nodes: tuple[int, int, str] | None) -> None:
        self.nodes = nodes

    async def ask(self, server: str, method: str, params: dict[str, str]) -> Any:
        node = self.nodes[server]
        if node is None:
            raise NodeUnreachable(f"{server} does not answer {method}")
        first, last, fork = node
        if method == "status":
            return {"result": {"sync_info": {"earliest_block_height": str(first), "latest_block_height": str(last)}}}
        return {"result": {"signed_header": {"commit": {"block_id": {"hash": _hash(fork, int(params["height"]))}}}}}


def _hash(fork: str, height: int) -> str:
    return f"{fork}{height:063X}"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ({"a": (1, 900, "A"), "b": (1, 905, "A"), "c": (1, 901, "A")}, (801, _hash("A", 801), ("a", "b", "c"))),
        ({"a": (850, 900, "A"), "b": (1, 900, "A"), "c": None}, (850, _hash("A", 850), ("a", "b"))),
        ({"a": (1, 900, "A"), "b": (1, 900, "A"), "c": (1, 10**9, "D")}, (800, _hash("A", 800), ("a", "b"))),
        ({"a": (1, 900, "A"), "b": (1, 900, "A"), "c": (10**9, 10**9, "D")}, (800, _hash("A", 800), ("a", "b"))),
        ({"a": (1, 900, "A"), "b": (1, 900, "B"), "c": (1, 900, "C")}, None),
        ({"a": (1, 900, "A"), "b": None, "c": None}, None),
        ({"a": (1, 90, "A"), "b": (1, 90, "A"), "c": (1, 90, "A")}, None),
    ],
)
async def test_a_header_is_trusted_where_more_members_report_it_than_could_lie(
    monkeypatch: pytest.MonkeyPatch, nodes: dict[str, Any], expected: tuple[int, str, tuple[str, ...]] | None
) -> None:
    monkeypatch.setattr(anchor, "_ask", _Peers(**nodes).ask)
    found = await anchor.find_anchor(list(nodes), 4, reach=100)
    assert (found and (found.height, found.block_hash, found.servers)) == expected


async def test_a_lone_server_is_named_twice_because_cometbft_wants_two() -> None:
    settings = anchor.Anchor(5, "AB", ("unix:///x/rpc.sock",)).settings()
    assert settings["CMT_STATESYNC_RPC_SERVERS"] == "unix:///x/rpc.sock,unix:///x/rpc.sock"


async def test_a_peer_that_is_down_says_nothing(tmp_path: Path) -> None:
    assert await anchor.find_anchor([f"unix://{tmp_path}/rpc.sock", "http://127.0.0.1:1"], 2, reach=10) is None


@pytest.mark.parametrize(("peers", "members"), [(3, 4), (9, 10), (1, 4)])
async def test_as_many_may_lie_as_among_the_members_of_today_where_they_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peers: int, members: int
) -> None:
    """The genesis may be of fewer: with ten members three can lie, and the genesis' four would stand only one."""
    asked: list[int] = []

    async def find(servers: Sequence[str], count: int, reach: int) -> anchor.Anchor:
        asked.append(count)
        return anchor.Anchor(5, "AB", tuple(servers))

    monkeypatch.setattr(validator, "find_anchor", find)
    empty: Any = SimpleNamespace(
        height=0, awaits_snapshot=False, archive=SimpleNamespace(retention=Retention()), genesis=genesis_of(4)
    )
    made = validator.Validator(empty, tmp_path, tmp_path, tmp_path, [f"http://{index}" for index in range(peers)])
    assert await made._state_sync()
    assert asked == [members]
