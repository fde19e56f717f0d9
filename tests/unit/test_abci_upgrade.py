"""A service's code changes at an agreed block: who decides it, what is refused on both sides, what is carried over."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quorate import BACK, ROUND_TIMEOUT, Address, Interrupt, Service, State, agree, keep, same
from quorate.abci import (
    Archive,
    Genesis,
    Plan,
    Retention,
    ServiceApp,
    Store,
    Target,
    UpgradeDue,
    ask_for,
    make_identity,
)
from quorate.abci.archive import FORMAT
from quorate.abci.machine import Applied, Block, Replica, apply_block, judge, payload_for
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.transaction import Kind, Roll, Transaction, encode_single
from quorate.abci.upgrade import take_over
from quorate.errors import ConfigError, PeerError, ServiceError
from quorate.fsm import Context, Period, codec
from quorate.members import Member, Membership
from tests.chain_of_agents.keys import keys
from tests.chain_of_agents.services import Counted, counting
from tests.unit.scripted_consensus import Consensus
from tests.upgrades.v1.ledger.service import Ledger as Ledger1
from tests.upgrades.v1.ledger.service import service as v1
from tests.upgrades.v2.ledger.service import Ledger, book
from tests.upgrades.v2.ledger.service import service as v2

CHAIN = "ledger-1"
KEYS = keys(4)
MEMBERS = [key.address for key in KEYS]
TO_2 = Plan(Target.of(v2))
NOW_MS = 5_000_000


def ask(replica: Replica, sender: int, plan: Plan = TO_2) -> Transaction:
    return Transaction(Kind.UPGRADE, (ask_for(CHAIN, replica.period, plan).signed(MEMBERS[sender], bytes(65)),))


def vote(replica: Replica, sender: int, value: int) -> Transaction:
    body = replica.period.round.encode(value)
    return Transaction(Kind.PAYLOAD, (payload_for(CHAIN, replica.period, body).signed(MEMBERS[sender], bytes(65)),))


def after(replica: Replica, *txs: Transaction, time_ms: int = NOW_MS) -> Applied:
    return apply_block(replica, Block(replica.height + 1, time_ms + 50 * replica.height, txs))


def in_round(name: str, coins: int = 40, entry: int = 2) -> Replica:
    """Version 1 at block 9, in a round of its third period, with one payload there and its clock running."""
    state = Ledger1(participants=tuple(MEMBERS), period=2, coins=coins, entry=entry)
    period = replace(Period.start(v1, MEMBERS, state), round=v1.rounds[name], sequence=7)
    replica = replace(Replica.start(period), height=9, hot=9)
    counted = after(replica, vote(replica, 0, 2)).replica
    return after(counted).replica


def agreed(replica: Replica, plan: Plan = TO_2) -> Replica:
    """After the block in which a quorum asked."""
    return after(replica, *(ask(replica, sender, plan) for sender in (0, 1, 3))).replica


# ---- who decides


def test_a_quorum_of_equal_asks_makes_the_next_block_the_first_of_the_new_version() -> None:
    start = in_round("AddUpRound")
    asked = after(start, ask(start, 0), ask(start, 3)).replica
    assert asked.upgrades.due is None
    assert asked.app_hash != start.app_hash, "who asks is agreed on, and news"
    due = after(asked, ask(asked, 1))
    assert due.accepted == (True,)
    assert due.replica.upgrades.due == Plan(Target.of(v2), due.replica.height + 1)
    assert due.replica.hot == due.replica.height


def test_asks_for_different_plans_do_not_add_up() -> None:
    start = in_round("AddUpRound")
    later, other = replace(TO_2, height=100), Plan(Target(2, "ab" * 32))
    one = after(start, ask(start, 0), ask(start, 1), ask(start, 2, later), ask(start, 3, other)).replica
    assert (len(one.upgrades.asks), one.upgrades.due) == (4, None)


def test_an_agreed_height_is_kept_and_the_old_version_goes_on_until_then() -> None:
    due = agreed(in_round("AddUpRound"), replace(TO_2, height=20))
    assert due.upgrades.due == Plan(Target.of(v2), 20)
    while due.height < 19:
        due = after(due).replica
    with pytest.raises(UpgradeDue, match=r"version 2 .* from block 20 on"):
        after(due)


def test_a_member_changes_its_mind_and_an_old_ask_of_its_own_does_not_change_it_back() -> None:
    start = in_round("WriteDownRound")
    first = ask(start, 0)
    asked = after(start, first, *(vote(start, who, 3) for who in (1, 2, 3))).replica
    assert asked.period.sequence == start.period.sequence + 1
    withdrawn = after(asked, ask(asked, 0, Plan(Target.of(v1)))).replica
    assert after(withdrawn, first).accepted == (False,), "a replay"
    assert after(withdrawn, ask(withdrawn, 1), ask(withdrawn, 3)).replica.upgrades.due is None


def test_what_is_agreed_stays_unless_a_quorum_takes_it_back() -> None:
    start = in_round("WriteDownRound")
    due = after(start, *(ask(start, who, replace(TO_2, height=50)) for who in (0, 1, 3)),
                *(vote(start, who, 3) for who in (1, 2, 3))).replica  # fmt: skip
    stay = Plan(Target.of(v1))
    one = after(due, ask(due, 0, stay)).replica
    assert one.upgrades.due == due.upgrades.due != None  # noqa: E711
    three = after(one, ask(one, 1, stay), ask(one, 3, stay)).replica
    assert three.upgrades.due is None


def test_who_is_no_member_any_more_does_not_count() -> None:
    start = in_round("AddUpRound")
    asked = after(start, ask(start, 0), ask(start, 1)).replica
    upgrades = replace(asked.upgrades, asks=(*asked.upgrades.asks, (Address("0xGone"), 8, TO_2)))
    assert upgrades.decided(asked.period, asked.height).due is None


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan(Target(1, "ab" * 32)), "expected a version over 1"),
        (Plan(Target(2, "AB" * 32)), "64 hex digits"),
        (Plan(Target(2, "ab" * 31)), "64 hex digits"),
        (Plan(Target(2, "ab" * 32, "x")), "64 hex digits"),
        (Plan(Target(1 << 53, "ab" * 32)), "expected a version"),
        (Plan(Target(2, "ab" * 32), -1), "block -1"),
        (Plan(Target(2, "ab" * 32), 1 << 53), "expected a version"),
        (Plan(Target(2, v1.spec_hash)), "the version that runs"),
        (Plan(Target.of(v1), 5), "the version that runs"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_at_home_and_from_a_peer(plan: Plan, why: str) -> None:
    start = in_round("AddUpRound")
    with pytest.raises(ConfigError, match=why):
        ask_for(CHAIN, start.period, plan)
    sound = ask(start, 0).payloads[0]
    bad = Transaction(Kind.UPGRADE, (replace(sound, body=codec.encode(plan)),))
    assert why in (judge(start, [bad]) or "")


def test_an_ask_counts_for_its_own_version_name_and_time_only() -> None:
    start = in_round("AddUpRound")
    sound = ask(start, 0).payloads[0]
    for bad, why in (
        (replace(sound, opening=bytes(32)), "to leave the version 000000000000"),
        (replace(sound, sequence=start.period.sequence + 1), "expected one of 1 to"),
        (replace(sound, round="AddUpRound/upgrade"), "under the name"),
        (replace(sound, sender=Address("0xGone")), "no member any more"),
        (replace(sound, body=b"{}"), "lacks the fields"),
    ):
        assert why in (judge(start, [Transaction(Kind.UPGRADE, (bad,))]) or ""), why
    assert judge(start, [Transaction(Kind.UPGRADE, (sound,))]) is None


def test_the_wire_keeps_asks_ticks_and_payloads_apart() -> None:
    start = in_round("AddUpRound")
    roll = Roll(CHAIN, MEMBERS)

    def signed(unsigned: Any) -> Any:
        return unsigned.signed(MEMBERS[0], KEYS[0].sign_digest(unsigned.digest()))

    asks, pays = signed(ask_for(CHAIN, start.period, TO_2)), signed(payload_for(CHAIN, start.period, b"2"))
    assert roll.transaction(encode_single(Kind.UPGRADE, asks)).kind is Kind.UPGRADE
    for kind, payload in ((Kind.PAYLOAD, asks), (Kind.TICK, asks), (Kind.UPGRADE, pays)):
        with pytest.raises(PeerError):
            roll.transaction(encode_single(kind, payload))
    assert start.why_not(asks) is not None, "nor does it count from a bundle"


# ---- what is carried over


def test_the_new_version_takes_over_state_round_and_numbers_and_answers_the_old_hash() -> None:
    old = agreed(in_round("AddUpRound"))
    new = Replica.decode(v2, old.encode())
    assert new.app_hash == old.app_hash
    assert (new.height, new.hot, new.absences) == (old.height, old.hot, old.absences)
    period = new.period
    assert (period.service, period.round, period.sequence) == (v2, book, old.period.sequence + 1)
    assert period.state == Ledger(participants=tuple(MEMBERS), period=2, cents=4000, entry_cents=200, entries=2)
    assert (period.members, period.origin) == (old.period.members, old.period.origin)
    assert not period.votes
    assert not period.clock_ms
    assert (new.upgrades.began, new.upgrades.asks, new.upgrades.due) == (old.height + 1, (), None)


def test_the_first_block_of_the_new_version_starts_no_clock_and_changes_the_hash() -> None:
    """Its time is that of the last votes of the old one: older than the whole pause."""
    new = Replica.decode(v2, agreed(in_round("AddUpRound")).encode())
    txs = [vote(new, who, 200) for who in range(4)]
    first = after(new, *txs)
    assert first.accepted == (True,) * 4
    assert (first.settled, first.replica.period.clock_ms) == (None, 0)
    assert first.replica.app_hash != new.app_hash
    assert not first.replica.inherited
    second = after(first.replica)
    assert second.settled is not None
    assert second.replica.period.state == Ledger(participants=tuple(MEMBERS), period=3, cents=4200, entries=3)
    assert Replica.decode(v2, second.replica.encode()) == second.replica


def test_nothing_that_was_signed_for_the_old_round_counts_in_the_new_one() -> None:
    old = agreed(in_round("AddUpRound"))
    new = Replica.decode(v2, old.encode())
    assert [new.why_not(vote(old, who, 2).payloads[0]) is None for who in range(4)] == [False] * 4
    assert judge(new, [ask(old, 2)]) is not None


def test_a_period_that_the_migration_begins_anew_has_a_beacon_of_its_own() -> None:
    def fresh(old: Any, round: str) -> tuple[Ledger, str]:
        return Ledger(period=old["period"] + 1), "WriteDownRound"

    again = replace(v2, migrations={v1.spec_hash: fresh})
    period = Replica.decode(again, agreed(in_round("AddUpRound")).encode()).period
    assert period.origin != in_round("AddUpRound").period.origin


def test_a_state_without_upgrades_has_the_hash_and_form_that_it_had_before_there_were_any() -> None:
    start = in_round("AddUpRound")
    rest = json.dumps([start.hot, start.ticks, start.absences, start.demoted], separators=(",", ":")).encode()
    assert start.app_hash == hashlib.sha256(start.period.digest() + rest).digest()
    *fields, _ = json.loads(start.encode())
    fields = fields[:6]  # as it was before members and versions could change
    check = hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()
    assert Replica.decode(v1, json.dumps([*fields, check], separators=(",", ":")).encode()) == start


# ---- what is refused


def test_the_old_version_ends_and_the_new_one_does_not_begin_early() -> None:
    start = in_round("AddUpRound")
    with pytest.raises(ConfigError, match="no other one; this is version 2"):
        Replica.decode(v2, start.encode())
    early = agreed(start, replace(TO_2, height=20))
    with pytest.raises(ConfigError, match="begins with block 20; this agent has come to block 12") as caught:
        Replica.decode(v2, early.encode())
    assert "older version until it ends" in caught.value.fix
    due = agreed(start)
    Replica.decode(v1, due.encode()).refuse_next(due.height)
    with pytest.raises(UpgradeDue, match=r"agreed on version 2 .* this is version 1") as ended:
        Replica.decode(v1, due.encode()).refuse_next(due.height + 1)
    assert ended.value.plan == due.upgrades.due


def test_only_the_very_version_that_was_agreed_on_takes_over() -> None:
    due = agreed(in_round("AddUpRound")).encode()
    with pytest.raises(ConfigError, match="agreed on version 2"):
        Replica.decode(replace(v2, version=3), due)
    with pytest.raises(ConfigError, match="service ledger"):
        Replica.decode(counting, due)
    new = Replica.decode(v2, due)
    written = after(new).replica.encode()
    with pytest.raises(ConfigError, match="no other one; this is version 1"):
        Replica.decode(v1, written)


@agree(same("cents"))
async def halted(ctx: Context, state: Ledger) -> int:
    return 0


@pytest.mark.parametrize(
    ("migrate", "why"),
    [
        (None, "cannot take over"),
        (lambda old, round: 1 / 0, "ZeroDivisionError"),
        (lambda old, round: (Ledger(cents="1"), round), "cents is .*expected int"),  # type: ignore[arg-type]
        (lambda old, round: (State(), "BookRound"), "lacks the fields"),
        (lambda old, round: Ledger(), "failed in AddUpRound"),
        (lambda old, round: (Ledger(), round), "goes on from AddUpRound in 'AddUpRound'"),
        (lambda old, round: (Ledger(), "HaltedRound"), "interrupt that was going on"),
    ],
)
def test_a_migration_that_fails_says_so_and_leaves_the_state_to_a_corrected_one(
    migrate: Callable[..., Any] | None, why: str
) -> None:
    halts = dict.fromkeys([(halted, "DONE"), (halted, "NO_MAJORITY"), (halted, ROUND_TIMEOUT)], BACK)
    broken = replace(
        v2,
        interrupts=(Interrupt("HALT", halted),),
        transitions={**v2.transitions, **halts},
        migrations={} if migrate is None else {v1.spec_hash: migrate},
    )
    mended = replace(broken, migrations=v2.migrations)
    assert mended.spec_hash == broken.spec_hash
    due = agreed(in_round("AddUpRound"), Plan(Target.of(broken))).encode()
    with pytest.raises(ConfigError, match=why):
        Replica.decode(broken, due)
    assert Replica.decode(mended, due).period.round is book


def test_a_state_that_is_no_object_is_damage() -> None:
    due = agreed(in_round("AddUpRound"))
    head, _, *rest = due.period.encode().split(b"\n")
    for state in (b"[]", b"[" * 5000):
        with pytest.raises(ValueError, match=r"no object|too deeply"):
            take_over(v2, b"\n".join((head, state, *rest)), due.upgrades, due.height)
    with pytest.raises(ValueError, match="no name"):
        take_over(v2, b'["ledger"]\n{}', due.upgrades, due.height)


# ---- members


@dataclass(frozen=True)
class Moved1(Membership):
    value: int = keep(0)


@dataclass(frozen=True)
class Moved2(Membership):
    value: int = keep(0)
    more: int = 0


@agree(same("value"))
async def move(ctx: Context, state: Any) -> int:
    return 0


def moving_service(state: type[State], version: int, migrate: Any = None) -> Service:
    migrations = {} if migrate is None else migrate
    return Service("moving", state=state, start=move, otherwise=move, version=version, migrations=migrations,
                   transitions={(move, "DONE"): move})  # fmt: skip


def test_an_upgrade_changes_no_members() -> None:
    roster = tuple(Member(address, f"{index:064x}", "ab" * 20, "") for index, address in enumerate(MEMBERS))
    old, plain_old = moving_service(Moved1, 1), moving_service(Counted, 1)

    def taken(before: Service, state: State, migrate: Callable[[Any, str], Any], kind: type[State] = Moved2) -> Period:
        new = moving_service(kind, 2, {before.spec_hash: migrate})
        start = replace(Replica.start(Period.start(before, MEMBERS, state)), height=5)
        return Replica.decode(new, agreed(start, Plan(Target.of(new))).encode()).period

    def whole(plain: Any, round: str) -> tuple[State, str]:
        return codec.decode(Moved2, codec.encode({**plain, "more": 3})), round

    mine = Moved1(chain=CHAIN, roster=roster, value=5)
    kept = taken(old, mine, whole)
    assert isinstance(kept.state, Moved2)
    assert (kept.state.roster, kept.members) == (roster, tuple(MEMBERS))
    for lost in (Moved2(), Moved2(chain=CHAIN, roster=roster[:3]), Moved2(chain="other", roster=roster)):
        with pytest.raises(ConfigError, match="chain and roster"):
            taken(old, mine, lambda plain, round, lost=lost: (lost, round))  # type: ignore[misc]
    with pytest.raises(ConfigError, match="chain and roster"):
        taken(old, mine, lambda plain, round: (Counted(), round), Counted)
    now_one = taken(plain_old, Counted(), lambda plain, round: (Moved2(chain=CHAIN, roster=roster), round))
    assert now_one.members == tuple(MEMBERS)
    with pytest.raises(ConfigError, match="chain and roster"):
        taken(plain_old, Counted(), lambda plain, round: (Moved2(), round))


# ---- interrupts


@dataclass(frozen=True)
class Plain(State):
    word: str = ""


@agree(same("word"))
async def work(ctx: Context, state: Plain) -> str:
    return ""


@agree(same("word"))
async def wait(ctx: Context, state: Plain) -> str:
    return ""


@agree(same("word"))
async def wait_less(ctx: Context, state: Plain) -> str:
    return ""


def with_interrupt(event: str, to: Any, version: int, migrate: Any = None) -> Service:
    ends = dict.fromkeys([(to, "DONE"), (to, "NO_MAJORITY"), (to, ROUND_TIMEOUT)], BACK)
    return Service("plain", state=Plain, start=work, otherwise=work, version=version, transitions={
        (work, "DONE"): work, **ends}, interrupts=(Interrupt(event, to),), migrations=migrate or {})  # fmt: skip


def test_an_interrupt_that_goes_on_is_kept_ended_or_missed() -> None:
    old = with_interrupt("HALT", wait, 1)
    period = Period.start(old, MEMBERS)
    for who in MEMBERS[:3]:
        period = period.deliver(who, 1, period.ask("HALT"))
    period = period.end_block(1000)[0]
    halting = replace(Replica.start(period), height=5)

    def taken(new: Service) -> Period:
        return Replica.decode(new, agreed(halting, Plan(Target.of(new))).encode()).period

    def stay(plain: Any, round: str) -> tuple[Plain, str]:
        return Plain(**{**plain, "participants": ()}), round

    same_one = taken(with_interrupt("HALT", wait, 2, {old.spec_hash: stay}))
    assert (same_one.round, same_one.interrupted) == (wait, (("HALT", "WorkRound"),))
    ended = taken(with_interrupt("REST", wait_less, 2, {old.spec_hash: lambda plain, name: (Plain(), "WorkRound")}))
    assert (ended.round, ended.interrupted) == (work, ())
    with pytest.raises(ConfigError, match=r"HALT.* which version 2 of plain has not"):
        taken(with_interrupt("REST", wait, 2, {old.spec_hash: stay}))


# ---- the service's own part


def test_the_version_is_part_of_the_hash_from_two_on_and_migrations_are_not() -> None:
    assert len({v2.spec_hash, replace(v2, version=3).spec_hash, replace(v2, version=1, migrations={}).spec_hash}) == 3
    assert replace(v2, migrations={}).spec_hash == v2.spec_hash
    assert list(v2.migrations) == [v1.spec_hash]


@pytest.mark.parametrize("wrong", [{"version": 0}, {"version": True}, {"version": 1}, {"version": "2"}])
def test_a_version_that_is_none_or_cannot_have_migrations_is_an_error_at_import(wrong: dict[str, Any]) -> None:
    with pytest.raises(ServiceError, match="expected 1, or 2 and more where there are migrations"):
        replace(v2, **wrong)


# ---- the application: two versions of the counting service


@dataclass(frozen=True)
class Weighed(Counted):
    weight: int = 0


@agree(same("value"))
async def add(ctx: Context, state: Weighed) -> int:
    return state.value + 1


def from_counted(old: Any, round: str) -> tuple[Weighed, str]:
    return Weighed(value=1000 + old["value"], weight=7), round


counting_2 = Service("counting", state=Weighed, start=add, transitions={(add, "DONE"): add}, otherwise=add, version=2,
                     migrations={counting.spec_hash: from_counted})  # fmt: skip


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.abci.app._QUIET_S", 0.02)


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Consensus]:
    chain = Consensus(tmp_path)
    await chain.init()
    for _ in range(4):
        await chain.block()
    yield chain
    for app in chain.apps:
        await app.stop()


async def _ask(chain: Consensus, *members: int, plan: Plan) -> None:
    for index in members:
        app, key = chain.apps[index], chain.keys[index]
        unsigned = ask_for("chain-1", app.period, plan)
        app.ask_upgrade(unsigned.signed(key.address, key.sign_digest(unsigned.digest())))
    await asyncio.sleep(0.02)
    chain.mempools[0] = [tx for pool in chain.mempools for tx in pool]


async def test_the_old_code_stops_before_the_agreed_block_and_the_new_code_goes_on_from_its_state(
    chain: Consensus,
) -> None:
    height = chain.height + 3
    await _ask(chain, 0, 1, 2, plan=Plan(Target.of(counting_2), height))
    while chain.height < height - 1:
        assert not chain.apps[0].failed.done()
        await chain.block()
    for app in chain.apps:
        assert isinstance(app.failed.result(), UpgradeDue)
    opens = [list(agent.opens) for agent in chain.agents]
    for call in (chain.propose(), chain.judge(0, [])):
        with pytest.raises(UpgradeDue):
            await call
    value = chain.apps[0].period.state.value  # type: ignore[attr-defined]
    with pytest.raises(UpgradeDue, match="counting agreed on version 2"):
        await chain.restart(0)
    chain.service = counting_2
    for index in range(4):
        app = await chain.restart(index)
        info = await app.info(pb.RequestInfo())
        assert (info.last_block_height, info.last_block_app_hash) == (height - 1, chain.hashes[-1])
    chain.extensions.clear()  # of openings that are gone; a real proposer drops them as these do
    await asyncio.sleep(0.05)
    assert [agent.opens for agent in chain.agents] != opens, "the new code acts in the round that it took over"
    for _ in range(6):
        await chain.block()
    state = chain.apps[3].period.state
    assert isinstance(state, Weighed)
    assert state.weight == 7
    assert state.value > 1000 + value
    status = (await chain.apps[0].query(pb.RequestQuery(path="/status"))).value.decode()
    assert f'"began": {height}' in status


async def test_an_agent_that_was_away_needs_the_old_code_up_to_the_last_block_of_it(chain: Consensus) -> None:
    await _ask(chain, 0, 1, 2, plan=Plan(Target.of(counting_2)))
    requests = []
    for _ in range(2):
        chain.ask(await chain.propose(0))
        if chain.apps[0].failed.done():
            break
        for index in (0, 1, 2):
            chain.hashes.append(await chain.decide(chain.apps[index]))
        requests.append(chain.last_request)
        if chain.apps[0].failed.done():
            break
    chain.service = counting_2
    with pytest.raises(ConfigError, match="no other one; this is version 2"):
        await chain.restart(3)
    chain.service = counting
    late = await chain.restart(3)
    for chain.last_request in requests:
        await chain.decide(late)
    assert isinstance(late.failed.result(), UpgradeDue)
    chain.service = counting_2
    assert (await chain.restart(3)).app_hash == chain.hashes[-1]


async def test_what_an_agent_asks_is_its_own_and_counts(chain: Consensus) -> None:
    app, key = chain.apps[0], chain.keys[0]
    unsigned = ask_for("chain-1", app.period, Plan(Target.of(counting_2)))
    with pytest.raises(ConfigError, match="did not sign"):
        app.ask_upgrade(unsigned.signed(chain.keys[1].address, key.sign_digest(unsigned.digest())))
    ahead = replace(unsigned, sequence=unsigned.sequence + 5)
    with pytest.raises(ConfigError, match="expected one of 1 to"):
        app.ask_upgrade(ahead.signed(key.address, key.sign_digest(ahead.digest())))


def _fresh(chain: Consensus, tmp_path: Path, service: Service, **options: Any) -> ServiceApp:
    store = Store(tmp_path / "fresh.db", "chain-1")
    return ServiceApp(service, chain.genesis, chain.keys[3].address, store, chain.agents[3], **options)


async def test_new_code_without_a_state_takes_a_snapshot_and_executes_no_block_of_the_old(
    chain: Consensus, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot execute its first block"):
        _fresh(chain, tmp_path, counting_2)
    giver = Archive(tmp_path / "given", Retention(blocks=400, snapshot_every=100, snapshots=3))
    await _ask(chain, 0, 1, 2, plan=Plan(Target.of(counting_2)))
    await chain.block()
    chain.service = counting_2
    for index in range(4):
        await chain.restart(index)
    chain.apps[0].archive = giver
    chain.extensions.clear()
    first = chain.height + 1
    for _ in range(4):
        await chain.block()
    assert giver.heights() == [first], "the first state of a version is kept for those that come later"
    late = _fresh(chain, tmp_path, counting_2, archive=Archive(tmp_path / "taken"), config_hash="cd" * 32)
    assert late.awaits_snapshot
    with pytest.raises(ConfigError, match="cannot execute its first block"):
        await late.init_chain(chain.init_request())
    (offer,) = (await chain.apps[0].list_snapshots(pb.RequestListSnapshots())).snapshots
    asked = pb.RequestLoadSnapshotChunk(height=first, format=FORMAT)
    chunk = (await chain.apps[0].load_snapshot_chunk(asked)).chunk
    await late.offer_snapshot(pb.RequestOfferSnapshot(snapshot=offer, app_hash=chain.hashes[first]))
    await late.apply_snapshot_chunk(pb.RequestApplySnapshotChunk(chunk=chunk))
    assert (late.height, late.app_hash, late.awaits_snapshot) == (first, chain.hashes[first], False)
    await late.stop()


async def test_settings_are_agreed_on_with_the_version(chain: Consensus, tmp_path: Path) -> None:
    ours, others = "cd" * 32, "ef" * 32
    chain.genesis = replace(chain.genesis, config_hash=others)
    with pytest.raises(ConfigError, match="settings of counting"):
        _fresh(chain, tmp_path, counting, config_hash=ours)
    store = Store(tmp_path / "upgraded.db", "chain-1")
    start = Replica.start(Period.start(counting, chain.genesis.addresses))
    due = replace(start, height=3, upgrades=replace(start.upgrades, due=Plan(Target.of(counting_2, ours), 4)))
    store.save(due.encode())

    def load(settings: str) -> ServiceApp:
        return ServiceApp(
            counting_2, chain.genesis, chain.keys[3].address, store, chain.agents[3], config_hash=settings
        )

    assert load(ours).height == load("").height == 3
    with pytest.raises(ConfigError, match=f"hash to {others}; its agents agreed on {ours}"):
        load(others)


def test_a_genesis_of_an_older_version_is_no_obstacle_for_a_later_one_and_one_for_version_1(tmp_path: Path) -> None:
    members = [Member.bind(make_identity(tmp_path / str(i)), "c-1", key) for i, key in enumerate(KEYS)]
    old, new = Genesis.create("c-1", v1, members), Genesis.create("c-1", v2, members)
    old.check(v2)
    with pytest.raises(ConfigError, match="with the specification"):
        new.check(v1)
    with pytest.raises(ConfigError, match="for the service ledger"):
        old.check(counting)
