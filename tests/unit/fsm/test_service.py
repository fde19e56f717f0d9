"""Every mistake in a service is an error at import that says where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from quorate import (
    ROUND_TIMEOUT,
    Address,
    Bps,
    Context,
    Outcome,
    Service,
    ServiceError,
    State,
    Votes,
    Wei,
    agree,
    choice,
    each,
    median,
    only_keeper,
    same,
)
from quorate.fsm import AnyRound, Round, Rule
from quorate.fsm.service import _fits

HERE = r"test_service\.py:\d+"


@dataclass(frozen=True)
class Shop(State):
    keeper: Address = Address("")
    owner: str = "somebody"
    price: Bps = Bps(0)
    maybe: Bps | None = None
    offers: tuple[tuple[Address, Bps], ...] = ()


def settle_close(state: Shop, votes: Votes[int]) -> Outcome[Literal["OPEN", "SHUT"], Shop] | None:
    return Outcome("OPEN" if votes.same() else "SHUT", state)


@agree(same("price"), timeout_s=1.5)
async def ask(ctx: Context, state: Shop) -> Bps:
    return Bps(1)


@agree(settle_close)
async def close_up(ctx: Context, state: Shop) -> int:
    return 0


@agree(settle_close)
async def rest(ctx: Context, state: Shop) -> int:
    return 0


EDGES: dict[tuple[AnyRound, str], AnyRound] = {
    (ask, "DONE"): close_up,
    (close_up, "OPEN"): ask,
    (close_up, "SHUT"): rest,
}


def shop(**changes: Any) -> Service:
    arguments: dict[str, Any] = {
        "name": "shop", "state": Shop, "start": ask, "transitions": EDGES, "otherwise": ask, "final": (rest,),
    }  # fmt: skip
    return Service(**{**arguments, **changes})


def round_with(rule: Rule[Any, Any], payload: Any) -> Round[Any, Any]:
    async def ask(ctx: Any, state: Any) -> Any:
        return None

    ask.__annotations__["return"] = payload
    return agree(rule)(ask)


def test_a_round_knows_its_name_events_payload_and_place() -> None:
    assert (close_up.name, close_up.payload) == ("CloseUpRound", int)
    assert close_up.events == {"OPEN", "SHUT", ROUND_TIMEOUT}
    assert ask.timeout_ms == 1500
    assert repr(ask) == "AskRound"
    assert "test_service.py:" in ask.where


def test_the_specification_has_open_autonomys_shape() -> None:
    spec = shop().spec()
    assert spec == {
        "alphabet_in": ["DONE", "NO_MAJORITY", "OPEN", "ROUND_TIMEOUT", "SHUT"],
        "default_start_state": "AskRound",
        "final_states": ["RestRound"],
        "label": "ShopAbciApp",
        "start_states": ["AskRound"],
        "states": ["AskRound", "CloseUpRound", "RestRound"],
        "transition_func": {
            "(AskRound, DONE)": "CloseUpRound",
            "(AskRound, NO_MAJORITY)": "AskRound",
            "(AskRound, ROUND_TIMEOUT)": "AskRound",
            "(CloseUpRound, OPEN)": "AskRound",
            "(CloseUpRound, ROUND_TIMEOUT)": "AskRound",
            "(CloseUpRound, SHUT)": "RestRound",
        },
    }


def test_the_specifications_text_reads_back_as_the_specification() -> None:
    for service in (
        shop(),
        shop(final=(), transitions={(ask, "DONE"): ask}),
        shop(start=rest, transitions={}, otherwise=None),
    ):
        assert yaml.safe_load(service.spec_yaml()) == service.spec()


def test_the_order_in_which_edges_are_written_changes_nothing() -> None:
    assert shop().spec_hash == shop(transitions=dict(reversed(EDGES.items()))).spec_hash


def test_what_must_be_shared_changes_the_hash() -> None:
    @dataclass(frozen=True)
    class Bigger(Shop):
        more: int = 0

    edges = {(ask, "DONE"): close_up, (close_up, "OPEN"): ask}
    plain = shop(transitions=edges, final=())
    slower = agree(same("price"), timeout_s=2)(ask.act)
    swapped = {(slower, "DONE"): close_up, (close_up, "OPEN"): slower}
    others = [
        shop(),
        shop(transitions=edges, final=(), state=Bigger),
        shop(transitions=swapped, final=(), start=slower, otherwise=slower),
        shop(transitions=edges, final=(), otherwise=close_up),
        shop(transitions=edges, final=(), name="shop2"),
    ]
    assert len({plain.spec_hash, *(one.spec_hash for one in others)}) == 6


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "my shop"}, "'my shop'; expected letters"),
        ({"transitions": {**EDGES, (ask, "SHUT"): rest}}, rf"AskRound \(.*{HERE}\) never ends with SHUT; .*'DONE'"),
        ({"otherwise": None}, r"no edge for \(AskRound, NO_MAJORITY\)"),
        ({"final": ()}, rf"no edge leaves RestRound \(.*{HERE}\)"),
        ({"transitions": {**EDGES, (rest, "OPEN"): ask}}, "RestRound is final, yet has an edge"),
        ({"start": rest}, "nothing leads to AskRound.*dead"),
        ({"transitions": {(ask, "DONE"): ask}}, "nothing leads to RestRound.*dead"),
        ({"start": agree(settle_close)(close_up.act)}, rf"two rounds are named CloseUpRound: .*{HERE} and .*{HERE}"),
    ],
)
def test_a_mistake_in_the_table_says_where(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ServiceError, match=rf"service .*{HERE}\): .*{why}"):
        shop(**changes)


@dataclass(frozen=True)
class NoDefault(State):
    price: Bps = field(kw_only=True)


@dataclass(frozen=True)
class WrongDefault(State):
    price: Bps = None  # type: ignore[assignment]


@dataclass(frozen=True)
class FloatInside(State):
    price: tuple[dict[str, float], ...] = ()


@dataclass
class Sloppy:
    price: Bps = Bps(0)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (NoDefault, "NoDefault.price has no default"),
        (WrongDefault, r"default of WrongDefault .*value\.price is null, expected int"),
        (FloatInside, r"its state: FloatInside\.price: floats differ"),
        (Sloppy, "can be changed"),
    ],
)
def test_a_mistake_in_the_state_says_where(state: type, why: str) -> None:
    with pytest.raises(ServiceError, match=rf"service shop \(.*{HERE}\).*{why}"):
        shop(state=state)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (round_with(same("prize"), Bps), r"AskRound .* uses the field 'prize'; Shop has \[.*'price'"),
        (round_with(same("price"), Wei), r"puts quorate\.units\.Wei into Shop\.price"),
        (round_with(same("price"), Bps | None), r"into Shop\.price"),
        (round_with(each("price"), Bps), r"into Shop\.price"),
        (round_with(each("offers"), Wei), r"into Shop\.offers"),
        (round_with(only_keeper("price", keeper="boss"), Bps), "'boss'"),
        (round_with(only_keeper("price", keeper="price"), Bps), r"Shop\.price"),
        (round_with(choice("price", ("FOR",), "AGAINST"), Literal["FOR"]), r"into Shop\.price"),
    ],
)
def test_a_rule_that_does_not_fit_the_state_is_an_error(one: AnyRound, why: str) -> None:
    with pytest.raises(ServiceError, match=rf"{HERE}.*{why}"):
        shop(start=one, transitions={(one, "DONE"): one}, otherwise=one, final=())


@pytest.mark.parametrize(
    ("one"),
    [
        round_with(same("maybe"), Bps),
        round_with(same("maybe"), Bps | None),
        round_with(each("offers"), Bps),
        round_with(only_keeper("price", keeper="owner"), Bps),
        round_with(choice("price", (1, 2), 0), Literal[1, 2]),
        round_with(choice("price", (1, 2), 0, keep="offers"), Bps),
    ],
)
def test_a_rule_that_fits_the_state_is_none(one: AnyRound) -> None:
    shop(start=one, transitions={(one, "DONE"): one}, otherwise=one, final=())


def test_a_unit_fits_its_plain_type_and_not_the_other_way() -> None:
    assert _fits(str, Address)
    assert _fits(tuple[tuple[str, int], ...], tuple[tuple[Address, Bps], ...])
    assert not _fits(Bps, int)
    assert not _fits(tuple[int, int], tuple[int])


@dataclass(frozen=True)
class Nested:
    inner: tuple[dict[str, tuple[int, float]], ...] = ()


@pytest.mark.parametrize(
    "payload", [float, tuple[float, ...], dict[str, float], float | None, Nested, tuple[Nested, int]]
)
def test_a_float_anywhere_in_a_payload_is_an_error_at_import(payload: Any) -> None:
    with pytest.raises(ServiceError, match=rf"AskRound \(.*{HERE}\): its payload: .*floats differ") as error:
        round_with(same("price"), payload)
    assert "integer" in error.value.fix


def test_an_act_must_say_what_it_sends() -> None:
    with pytest.raises(ServiceError, match=rf"TalkRound \(.*{HERE}\) does not say what it returns"):

        @agree(same("price"))
        async def talk(ctx, state):  # type: ignore[no-untyped-def]
            return 1


def test_an_unknown_payload_type_is_named() -> None:
    with pytest.raises(ServiceError, match=rf"TalkRound \(.*{HERE}\): its return type .*'Nonsense'"):

        @agree(same("price"))
        async def talk(ctx: Context, state: Shop) -> Nonsense:  # type: ignore[name-defined]  # noqa: F821
            return 1


def test_the_contexts_type_need_not_exist_at_run_time() -> None:
    @agree(same("price"))
    async def talk(ctx: Nonsense, state: Shop) -> Bps:  # type: ignore[name-defined]  # noqa: F821
        return Bps(1)

    assert talk.payload is Bps


def test_a_rule_must_name_its_events() -> None:
    def vague(state: Shop, votes: Votes[int]) -> Outcome[str, Shop] | None:
        return None

    def silent(state, votes):  # type: ignore[no-untyped-def]
        return None

    for rule, why in ((vague, "Outcome"), (silent, "does not say what it returns")):
        with pytest.raises(ServiceError, match=rf"the rule .*{rule.__name__} \(.*{HERE}\).*{why}"):
            round_with(rule, int)


def test_a_round_needs_time() -> None:
    with pytest.raises(ServiceError, match="timeout_s is 0"):
        agree(same("price"), timeout_s=0)(ask.act)


def test_an_act_that_breaks_its_word_is_told_so() -> None:
    with pytest.raises(ServiceError, match=rf"AskRound \(.*{HERE}\): act returned 'cheap' is no Bps"):
        ask.encode("cheap")
    assert ask.encode(Bps(7)) == b"7"


def test_next_follows_the_table() -> None:
    service = shop()
    assert service.table[ask.name, "DONE"] is close_up
    assert service.table[ask.name, ROUND_TIMEOUT] is ask


def test_a_rule_may_refuse_a_payload_that_it_cannot_count() -> None:
    with pytest.raises(ServiceError, match=rf"AskRound \(.*{HERE}\): the rule computes with integers"):
        round_with(median("price"), str)


@pytest.mark.parametrize("version", [0, -1, "2", True, None])
def test_a_version_is_a_number_from_one(version: Any) -> None:
    with pytest.raises(ServiceError, match=rf"{HERE}.*version {version!r}; expected 1, or 2"):
        shop(version=version)
    with pytest.raises(ServiceError, match="version 1; expected 1, or 2 and more where there are migrations"):
        shop(version=1, migrations={"0" * 64: lambda state, round: (state, round)})
