"""CometBFT's 13 requirements of an ABCI 2.0 application, one test each (spec/abci/abci++_app_requirements.md).

Each test is a check that our application passes and a mutant of it fails: a mistake that an application could well
make, and that this requirement forbids. p and q are correct processes, u and w proposed blocks, s the state.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import tomllib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quorate.abci import ServiceApp, SignedPayload, payload_for
from quorate.abci.config import Peer, render
from quorate.abci.machine import Block, execute, tick_for
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.statement import split
from quorate.abci.transaction import Kind, Roll, encode_bundle, encode_single
from quorate.fsm import Period
from tests.unit.scripted_consensus import ACCEPT, REJECT, Consensus

Check = Callable[[Consensus], Awaitable[None]]


class Violated(Exception):
    """A requirement does not hold."""


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Violated(what)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.abci.app._QUIET_S", 0.02)


async def passes_and_fails(folder: Path, check: Check, mutant: type[ServiceApp], *, is_fast: bool = False) -> None:
    """Our application passes `check`; `mutant` is caught by its demands (not by some other failure)."""
    await _run(Consensus(folder / "ours", is_fast=is_fast), check)
    with pytest.raises(Violated):
        await _run(Consensus(folder / "mutant", is_fast=is_fast, application=mutant), check)


async def _run(chain: Consensus, check: Check) -> None:
    try:
        await chain.init()
        if not chain.is_fast:
            for _ in range(3):  # afterwards the first round is open, its clock runs, and the chain sleeps
                await chain.block()
        await check(chain)
    finally:
        for app in chain.apps:
            await app.stop()


def _single(payload: SignedPayload) -> bytes:
    return encode_single(Kind.PAYLOAD, payload)


def _now(chain: Consensus) -> list[SignedPayload]:
    """Every agent's payload for the round that goes on."""
    return [agent.payload(chain.apps[0].period) for agent in chain.agents]


def _ahead(chain: Consensus, agent: int, rounds: int, body: bytes = b"9") -> SignedPayload:
    """A member's payload for a round to come, of an opening that nobody knows."""
    unsigned = payload_for("chain-1", _later(chain.apps[0].period, rounds), body)
    key = chain.keys[agent]
    return unsigned.signed(key.address, key.sign_digest(unsigned.digest()))


def _later(period: Period, rounds: int) -> Period:
    return replace(period, sequence=period.sequence + rounds)


def _tick(chain: Consensus, agent: int) -> bytes:
    tick = tick_for("chain-1", chain.apps[0].period, 0)
    key = chain.keys[agent]
    return encode_single(Kind.TICK, tick.signed(key.address, key.sign_digest(tick.digest())))


def _proposals(chain: Consensus) -> list[list[bytes]]:
    """Sound and unsound ones, some that leave this or that payload out."""
    payloads = _now(chain)
    return [
        [],
        [encode_bundle(payloads)],
        [encode_bundle(payloads[1:])],
        [_single(payloads[2])],
        [encode_bundle(payloads[:2]), _tick(chain, 1)],
        [_single(_ahead(chain, 1, 1))],
        [b"garbage"],
        [_single(payloads[0]), _single(payloads[0])],
    ]


def _extensions(chain: Consensus) -> list[bytes]:
    """Of validator 0: sound, of another round or opening, not its own, and no extension at all."""
    payloads = _now(chain)
    return [b"", payloads[0].encode(), _ahead(chain, 0, 1).encode(), payloads[1].encode(), b"junk", bytes(9000)]


# ---- the proposer


async def test_requirement_1_a_proposal_is_ready_in_time_however_full_the_mempool_is(tmp_path: Path) -> None:
    """CometBFT app requirement 1: PrepareProposal within `timeout_propose`, with as much as the mempool takes."""
    config = tomllib.loads(render(Peer("00", 1), []))
    timeout_s = int(config["consensus"]["timeout_propose"].removesuffix("ms")) / 1000
    full = int(config["mempool"]["size"])
    part = 5  # of the mempool, in as large a part of the time: the test is to be quick

    class VerifiesAnew(ServiceApp):
        async def prepare_proposal(self, request: pb.RequestPrepareProposal) -> pb.ResponsePrepareProposal:
            for _ in range(3):
                self._roll = Roll(self.genesis.chain_id, self.genesis.addresses)
                answer = await super().prepare_proposal(request)
            return answer

    async def check(chain: Consensus) -> None:
        flood = [_single(_ahead(chain, i % 4, 1 + i % 2, b"%d" % i)) for i in range(full // part)]
        for tx in flood:  # each proposer has seen what is in its mempool
            assert (await chain.apps[0].check_tx(pb.RequestCheckTx(tx=tx))).code == 0
        chain.mempools[0] = flood + list(map(_single, _now(chain)))
        before = time.process_time()
        txs = await asyncio.wait_for(chain.propose(), timeout_s)
        took_s = part * (time.process_time() - before)
        assert sum(tx[0] == Kind.PAYLOAD for tx in txs) == 4  # beside the evidence of who flooded
        demand(took_s < timeout_s, f"PrepareProposal takes {took_s:.2f} s of CPU, timeout_propose is {timeout_s} s")

    await passes_and_fails(tmp_path, check, VerifiesAnew)


async def test_requirement_2_a_proposal_is_never_larger_than_asked(tmp_path: Path) -> None:
    """CometBFT app requirement 2: the transactions, framed as in a block, fit into `max_tx_bytes`."""

    class ForgetsTheFrames(ServiceApp):
        async def prepare_proposal(self, request: pb.RequestPrepareProposal) -> pb.ResponsePrepareProposal:
            request.max_tx_bytes += 8 * (1 + len(request.txs))
            return await super().prepare_proposal(request)

    async def check(chain: Consensus) -> None:
        payloads = _now(chain)
        chain.extensions = {index: payload.encode() for index, payload in enumerate(payloads[:2])}
        chain.mempools[0] = [_single(payloads[2]), _single(payloads[3]), _tick(chain, 0), _tick(chain, 1)]
        assert len(await chain.propose()) == 5
        for room in range(0, 1600, 3):
            size = pb.ResponsePrepareProposal(txs=await chain.propose(room=room)).ByteSize()
            demand(size <= room, f"{size} bytes of transactions where {room} were asked for")

    await passes_and_fails(tmp_path, check, ForgetsTheFrames)


async def test_requirement_3_what_a_correct_node_proposes_all_correct_nodes_accept(tmp_path: Path) -> None:
    """CometBFT app requirement 3, with stale, early, doubled payloads and ticks in the proposer's mempool."""

    class ProposesTheMempoolAsItIs(ServiceApp):
        async def prepare_proposal(self, request: pb.RequestPrepareProposal) -> pb.ResponsePrepareProposal:
            return pb.ResponsePrepareProposal(txs=request.txs)

    async def check(chain: Consensus) -> None:
        stale = list(map(_single, _now(chain)))
        await chain.block(stale)
        payloads = _now(chain)
        early = [_single(_ahead(chain, i, 1)) for i in range(4)]
        doubled = [_single(payloads[1]), _single(payloads[1]), _single(payloads[0])]
        for mempool in ([], stale, early, doubled, [_tick(chain, 2), _tick(chain, 2)], [*early, *doubled, *stale]):
            for extensions in ({}, {0: payloads[0].encode()}, {i: p.encode() for i, p in enumerate(payloads)}):
                chain.mempools[0], chain.extensions = mempool, dict(extensions)
                txs = await chain.propose()
                answers = [await chain.judge(index, txs) for index in range(4)]
                demand(answers == [ACCEPT] * 4, f"a correct node's proposal of {len(txs)} transactions: {answers}")

    await passes_and_fails(tmp_path, check, ProposesTheMempoolAsItIs)


# ---- those who judge a proposal


async def test_requirement_4_the_answer_to_a_proposal_depends_on_it_and_the_last_state_alone(tmp_path: Path) -> None:
    """CometBFT app requirement 4: the same answer before and after an own payload, other proposals and a restart."""

    class DefendsItsPayload(ServiceApp):
        async def process_proposal(self, request: pb.RequestProcessProposal) -> pb.ResponseProcessProposal:
            mine = self._outbox.peek(self._replica.opening)
            if request.txs and mine and not any(mine.encode() in tx for tx in request.txs):
                return pb.ResponseProcessProposal(status=REJECT)
            return await super().process_proposal(request)

    async def check(chain: Consensus) -> None:
        async def answers() -> list[int]:
            return [await chain.judge(0, txs) for txs in _proposals(chain)]

        first = await answers()
        assert {ACCEPT, REJECT} == set(first)
        chain.agents[0].answer(chain.apps[0].period)
        await asyncio.sleep(0.01)
        demand(await answers() == first, "another answer once a payload of its own was ready")
        await chain.restart(0)
        demand(await answers() == first, "another answer after a restart")

    await passes_and_fails(tmp_path, check, DefendsItsPayload)


async def test_requirement_5_all_correct_nodes_give_a_proposal_the_same_answer(tmp_path: Path) -> None:
    """CometBFT app requirement 5, on nodes that differ in all but the state."""

    class AcceptsWhatItHasSeen(ServiceApp):
        async def check_tx(self, request: pb.RequestCheckTx) -> pb.ResponseCheckTx:
            self.seen = {*getattr(self, "seen", set()), request.tx}
            return await super().check_tx(request)

        async def process_proposal(self, request: pb.RequestProcessProposal) -> pb.ResponseProcessProposal:
            if any(tx[0] == Kind.PAYLOAD and tx not in getattr(self, "seen", ()) for tx in request.txs):
                return pb.ResponseProcessProposal(status=REJECT)
            return await super().process_proposal(request)

    async def check(chain: Consensus) -> None:
        chain.agents[1].answer(chain.apps[1].period)
        await chain.restart(2)
        await chain.apps[3].check_tx(pb.RequestCheckTx(tx=_single(_now(chain)[2])))
        for txs in _proposals(chain):
            answers = {await chain.judge(index, txs) for index in range(4)}
            demand(len(answers) == 1, f"{answers} to one proposal of {len(txs)} transactions")

    await passes_and_fails(tmp_path, check, AcceptsWhatItHasSeen)


# ---- vote extensions


async def test_requirement_6_what_a_correct_node_attaches_to_its_vote_all_accept(tmp_path: Path) -> None:
    """CometBFT app requirement 6: also those that have not seen the block that the vote is for, or are behind it."""

    class AcceptsTheRoundItIsIn(ServiceApp):
        async def verify_vote_extension(self, request: pb.RequestVerifyVoteExtension) -> pb.ResponseVerifyVoteExtension:
            wire = split(request.vote_extension)[1]
            if wire and SignedPayload.decode(wire).sequence != self.period.sequence:
                return pb.ResponseVerifyVoteExtension(status=pb.ResponseVerifyVoteExtension.REJECT)
            return await super().verify_vote_extension(request)

    async def check(chain: Consensus) -> None:
        attached = 0
        for _ in range(6):
            chain.ask(await chain.propose())
            for index in (0, 1, 2):  # 3 has not got the proposal
                assert await chain.process(index) == ACCEPT
                chain.extensions[index] = extension = await chain.extend(index)
                attached += bool(split(extension)[1])
                answers = [await chain.verified_by(app, index, extension) for app in chain.apps]
                demand(answers == [ACCEPT] * 4, f"a correct node's vote extension: {answers}")
            for app in chain.apps:
                await chain.decide(app)
        assert attached > 3

    await passes_and_fails(tmp_path, check, AcceptsTheRoundItIsIn, is_fast=True)


async def test_requirement_7_the_answer_to_a_vote_extension_never_changes(tmp_path: Path) -> None:
    """CometBFT app requirement 7: ours depends on the extension and the genesis alone, at any time and height."""

    class RefusesRepetition(ServiceApp):
        async def verify_vote_extension(self, request: pb.RequestVerifyVoteExtension) -> pb.ResponseVerifyVoteExtension:
            self.seen = [*getattr(self, "seen", []), request.vote_extension]
            if request.vote_extension and self.seen.count(request.vote_extension) > 1:
                return pb.ResponseVerifyVoteExtension(status=pb.ResponseVerifyVoteExtension.REJECT)
            return await super().verify_vote_extension(request)

    async def check(chain: Consensus) -> None:
        extensions = _extensions(chain)

        async def answers() -> list[int]:
            return [await chain.verified_by(chain.apps[1], 0, extension) for extension in extensions]

        first = await answers()
        assert {ACCEPT, REJECT} == set(first)
        demand(await answers() == first, "another answer to the same extension again")
        await chain.block(list(map(_single, _now(chain))))
        await chain.restart(1)
        demand(await answers() == first, "another answer a round later")

    await passes_and_fails(tmp_path, check, RefusesRepetition)


async def test_requirement_8_all_correct_nodes_give_a_vote_extension_the_same_answer(tmp_path: Path) -> None:
    """CometBFT app requirement 8: whether or not they have seen the proposal (a slow one gets the precommits first)."""

    class AcceptsOpeningsItKnows(ServiceApp):
        async def verify_vote_extension(self, request: pb.RequestVerifyVoteExtension) -> pb.ResponseVerifyVoteExtension:
            known = {self._replica.opening, *(applied.replica.opening for applied in self._speculated.values())}
            answer = await super().verify_vote_extension(request)
            wire = split(request.vote_extension)[1]
            if (
                wire
                and answer.status == pb.ResponseVerifyVoteExtension.ACCEPT
                and SignedPayload.decode(wire).opening not in known
            ):
                answer.status = pb.ResponseVerifyVoteExtension.REJECT
            return answer

    async def check(chain: Consensus) -> None:
        chain.ask([encode_bundle(_now(chain))])
        for index in (0, 1):
            assert await chain.process(index) == ACCEPT
        after = next(iter(chain.apps[0]._speculated.values())).replica.period
        for extension in (*_extensions(chain), chain.agents[0].payload(after).encode()):
            answers = {await chain.verified_by(app, 0, extension) for app in chain.apps}
            demand(len(answers) == 1, f"{answers} to one extension of {len(extension)} bytes")

    await passes_and_fails(tmp_path, check, AcceptsOpeningsItKnows)


# ---- state


async def test_requirement_9_nothing_but_a_decided_block_changes_the_state(tmp_path: Path) -> None:
    """CometBFT app requirement 9: proposals that are made, judged and voted on, but never decided."""

    class AdoptsWhatItAccepts(ServiceApp):
        async def process_proposal(self, request: pb.RequestProcessProposal) -> pb.ResponseProcessProposal:
            answer = await super().process_proposal(request)
            if answer.status == ACCEPT:
                self._replica = self._speculate(request, request.proposed_last_commit).replica
            return answer

    async def check(chain: Consensus) -> None:
        app = chain.apps[0]

        def state() -> tuple[bytes, int, bytes, bytes | None]:
            return app.app_hash, app.height, app.period.encode(), app._store.load()

        before, decided = state(), encode_bundle(_now(chain)[1:])
        height, time_ms = chain.height, chain.time_ms
        for txs in _proposals(chain):
            chain.height, chain.time_ms = height, time_ms
            chain.ask(txs)
            chain.last_request.hash += b"never" + bytes(str(len(b"".join(txs))), "ascii")
            chain.mempools[0] = txs
            await chain.propose()
            if await chain.process(0) == ACCEPT:
                await chain.extend(0)
            for extension in _extensions(chain):
                await chain.verified_by(app, 1, extension)
            demand(state() == before, f"the state changed by a proposal of {len(txs)} transactions")
        chain.height, chain.time_ms = height, time_ms
        chain.ask([decided])
        results = {await chain.decide(chain.apps[index]) for index in (0, 3)}  # 3 was asked nothing
        demand(len(results) == 1, "the undecided proposals changed what the decided block did")

    await passes_and_fails(tmp_path, check, AdoptsWhatItAccepts)


async def test_requirement_10_a_vote_extension_changes_no_state_before_a_block_carries_it(tmp_path: Path) -> None:
    """CometBFT app requirement 10: neither the node's own extension nor those that it received."""

    class CountsItsOwnExtension(ServiceApp):
        async def extend_vote(self, request: pb.RequestExtendVote) -> pb.ResponseExtendVote:
            answer = await super().extend_vote(request)
            if wire := split(answer.vote_extension)[1]:
                applied = self._speculated[request.hash]
                own = self._roll.transaction(bytes([Kind.PAYLOAD]) + wire)
                self._speculated[request.hash] = replace(applied, replica=execute(applied.replica, own))
            return answer

    async def check(chain: Consensus) -> None:
        chain.agents[0].answer(chain.apps[0].period)
        await asyncio.sleep(0.01)
        chain.ask([_single(_now(chain)[1])])
        assert await chain.process(0) == ACCEPT
        extension = await chain.extend(0)
        assert split(extension)[1]
        for app in chain.apps[:3]:  # 3 sees nobody's extension
            await chain.verified_by(app, 0, extension)
        results = {await chain.decide(app) for app in chain.apps}
        demand(len(results) == 1, "the state of the one that extended its vote is another")

    await passes_and_fails(tmp_path, check, CountsItsOwnExtension)


async def _decided(chain: Consensus) -> list[pb.RequestFinalizeBlock]:
    """Blocks of every kind: news, none, a round's end, what a decided block should not hold but might."""
    requests = []
    stale = list(map(_single, _now(chain)))
    for txs in ([stale[0]], [], [encode_bundle(_now(chain)[1:])], [], [stale[1], b"garbage"], [_tick(chain, 2)], []):
        requests.append(chain.ask(txs))
        if txs and txs != [stale[1], b"garbage"]:
            await chain.process(0)
        await chain.decide(chain.apps[0])
    return requests


async def test_requirement_11_the_next_state_depends_on_the_block_and_the_last_state_alone(tmp_path: Path) -> None:
    """CometBFT app requirement 11: live, catching up a moment later, and restarted at every block."""

    clock_ms = int(time.time() * 1000)  # a machine's clock that stands still while the blocks are decided

    class ReadsTheClock(ServiceApp):
        def _block(self, request: pb.RequestFinalizeBlock, last_commit: pb.CommitInfo) -> Block:  # type: ignore[override]  # of one of the three requests
            return replace(super()._block(request, last_commit), time_ms=clock_ms)

    async def check(chain: Consensus) -> None:
        nonlocal clock_ms
        requests = await _decided(chain)
        clock_ms += 10
        for index, restarts in ((1, False), (2, True)):
            for request in requests:
                chain.last_request = request
                await chain.decide(chain.apps[index])
                if restarts:
                    await chain.apps[index].stop()
                    await chain.restart(index)
            same = chain.apps[index].app_hash == chain.apps[0].app_hash
            demand(same, f"another state after the same blocks (restarts: {restarts})")
            assert chain.apps[index].period.encode() == chain.apps[0].period.encode()

    await passes_and_fails(tmp_path, check, ReadsTheClock, is_fast=False)


async def test_requirement_12_the_results_depend_on_the_block_and_the_last_state_alone(tmp_path: Path) -> None:
    """CometBFT app requirement 12: result codes and validator updates, on a live node and on one that catches up."""

    class HasNoResultsWhenCatchingUp(ServiceApp):
        async def finalize_block(self, request: pb.RequestFinalizeBlock) -> pb.ResponseFinalizeBlock:
            is_live = request.hash in self._speculated
            answer = await super().finalize_block(request)
            for result in () if is_live else answer.tx_results:
                result.code = 0
            return answer

    async def check(chain: Consensus) -> None:
        stale = _single(_now(chain)[0])
        await chain.block(list(map(_single, _now(chain))))
        request = chain.ask([stale, _single(_now(chain)[1]), b"garbage"])
        live, late = chain.apps[0], chain.apps[1]
        live._speculate(request, request.decided_last_commit)
        results = [(await app.finalize_block(request)).SerializeToString() for app in (live, late)]
        demand(results[0] == results[1], "other results for the same block")
        codes = [result.code for result in pb.ResponseFinalizeBlock.FromString(results[0]).tx_results]
        assert codes == [1, 0, 1]

    await passes_and_fails(tmp_path, check, HasNoResultsWhenCatchingUp)


# ---- mempool


async def test_requirement_13_what_is_said_of_a_transaction_comes_to_rest_and_is_the_same_on_all(
    tmp_path: Path,
) -> None:
    """CometBFT app requirement 13: a payload may wait, then count, and is refused for ever once its round is over."""

    class TakesTheStaleWhileAsleep(ServiceApp):
        async def check_tx(self, request: pb.RequestCheckTx) -> pb.ResponseCheckTx:
            return pb.ResponseCheckTx() if self.is_asleep else await super().check_tx(request)

    async def check(chain: Consensus) -> None:
        payloads = _now(chain)
        txs = [_single(payloads[0]), _tick(chain, 1), b"garbage"]
        txs += [_single(_ahead(chain, 0, rounds)) for rounds in (1, 2, 3)]
        said: dict[bytes, list[tuple[bool, ...]]] = {tx: [] for tx in txs}
        for _ in range(5):
            for sent in ([], [], list(map(_single, _now(chain)))):  # it sleeps, wakes, and settles
                for tx in txs:
                    answers = [(await app.check_tx(pb.RequestCheckTx(tx=tx))).code == 0 for app in chain.apps]
                    said[tx].append(tuple(answers))
                await chain.block(sent)
        for answers_by_height in said.values():
            demand(set(answers_by_height[-5:]) == {(False,) * 4}, f"not at rest: {answers_by_height}")
            changes = [a for a, b in itertools.pairwise(answers_by_height) if a != b]
            demand(len(changes) <= 2, f"more than refused, taken, refused: {answers_by_height}")

    await passes_and_fails(tmp_path, check, TakesTheStaleWhileAsleep)
