"""The contract wrappers name only what the contracts have, and build what the contracts read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from quorate.chain import (
    FOR,
    Abi,
    Chain,
    Governor,
    Model,
    Offer,
    OperatorRegistry,
    Timelock,
    Token,
    load_abi,
    selector_of,
)
from quorate.chain import contracts as wrappers
from quorate.chain.safe import SAFE_VERSION, _abi
from quorate.units import Address, Call, Hash, Wei
from tests.unit.scripted_chain import scripted_chain

A, B = Address("0x" + "12" * 20), Address("0x" + "34" * 20)


def uses_of(tree: ast.AST) -> list[tuple[str, int]]:
    """Each (function, number of arguments) that `abi.encode` or `chain.read` is asked for; -1 where it is starred."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        skip = {"encode": 0, "read": 2}.get(node.func.attr)
        if skip is None or len(node.args) <= skip or not isinstance(node.args[skip], ast.Constant):
            continue
        rest = node.args[skip + 1 :]
        count = -1 if any(isinstance(a, ast.Starred) for a in rest) else len(rest)
        name = node.args[skip]
        assert isinstance(name, ast.Constant)
        found.append((str(name.value), count))
    return found


def _wrapped() -> list[tuple[str, Abi, str, int]]:
    tree = ast.parse(Path(wrappers.__file__).read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return [
        (name, getattr(wrappers, name).abi, function, count)
        for name in ("Token", "Governor", "Timelock", "OperatorRegistry")
        for function, count in uses_of(classes[name])
    ]


@pytest.mark.parametrize(("wrapper", "abi", "function", "count"), _wrapped())
def test_every_function_that_a_wrapper_names_is_in_the_abi(wrapper: str, abi: Abi, function: str, count: int) -> None:
    assert function in abi.functions, f"{wrapper} names {function}, which its contract does not have"
    if count >= 0:
        abi.function(function, count)


def test_the_scan_sees_the_wrappers_functions() -> None:
    """Protects the test above from becoming empty."""
    assert {("Governor", "castVoteWithReason"), ("Token", "balanceOf"), ("OperatorRegistry", "operators")} <= {
        (wrapper, function) for wrapper, _, function, _ in _wrapped()
    }
    assert len(_wrapped()) > 40


def test_every_function_of_safe_that_we_name_is_in_its_abi() -> None:
    abi = _abi("Safe")
    for name, count in (("setup", 8), ("getModulesPaginated", 2), ("nonce", 0), ("getOwners", 0), ("getThreshold", 0)):
        abi.function(name, count)
    abi.function("execTransaction", 10)
    abi.function("getTransactionHash", 10)
    assert SAFE_VERSION == "1.4.1"


def _chain() -> Chain:
    return scripted_chain({})


def test_writes_build_calls_with_the_right_selectors() -> None:
    offer = Offer(key=B, endpoint="http://x", models=(Model("minilm", Hash("0x" + "01" * 32)),))
    calls = [Call(B, Wei(0), "0x")]
    governor, registry = Governor(_chain(), A), OperatorRegistry(_chain(), A)
    token, timelock = Token(_chain(), A), Timelock(_chain(), A)
    expected = {
        "propose(address[],uint256[],bytes[],string)": governor.propose(calls, "text"),
        "castVote(uint256,uint8)": governor.cast_vote(1, FOR),
        "castVoteWithReason(uint256,uint8,string)": governor.cast_vote_with_reason(1, FOR, "because"),
        "queue(address[],uint256[],bytes[],bytes32)": governor.queue(calls, "text"),
        "execute(address[],uint256[],bytes[],bytes32)": governor.execute(calls, "text"),
        f"register({_OFFER})": registry.register(offer),
        f"update({_OFFER})": registry.update(offer),
        "setPrice(string,uint128,uint128)": registry.set_price("minilm", Wei(1), Wei(2)),
        "setSlasher(address)": registry.set_slasher(B),
        "hold(address,uint64)": registry.hold(B, 5),
        "slash(address,uint256,address,bytes32)": registry.slash(B, Wei(1), A, Hash("0x" + "02" * 32)),
        "stake(uint256)": registry.stake(Wei(1)),
        "startUnbonding(uint256)": registry.start_unbonding(Wei(1)),
        "withdraw()": registry.withdraw(),
        "pause()": registry.pause(),
        "unpause()": registry.unpause(),
        "transfer(address,uint256)": token.transfer(B, Wei(1)),
        "approve(address,uint256)": token.approve(B, Wei(1)),
        "delegate(address)": token.delegate(B),
        "grantRole(bytes32,address)": timelock.grant_role(Timelock.PROPOSER, B),
        "revokeRole(bytes32,address)": timelock.revoke_role(Timelock.PROPOSER, B),
        "renounceRole(bytes32,address)": timelock.renounce_role(Timelock.PROPOSER, B),
    }
    for signature, call in expected.items():
        assert (call.to, call.value, call.data[:10]) == (A, 0, selector_of(signature)), signature


def test_a_reason_that_looks_like_hex_stays_text() -> None:
    call = Governor(_chain(), A).cast_vote_with_reason(1, FOR, "0xab")
    arguments = (
        load_abi("QuorateGovernor").function("castVoteWithReason", 3).decode_arguments(bytes.fromhex(call.data[10:]))
    )
    assert arguments == (1, FOR, "0xab")


def test_an_argument_of_the_wrong_kind_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(ValueError, match=r"transfer\(address,uint256\)"):
        Token(_chain(), A).transfer(B, Wei(-1))
    with pytest.raises(ValueError, match="there is: castVote"):
        load_abi("QuorateGovernor").encode("castVote", 1)
    with pytest.raises(ValueError, match="no function of that name"):
        load_abi("QuorateGovernor").encode("castVotes", 1)


async def test_every_operator_is_read_page_by_page_at_one_block() -> None:
    asked: list[tuple[int, int, str]] = []
    operator = (A, B, "http://x", "eu", "h200", 8, [("minilm", bytes(31) + b"\1", 2, 3)], 5, 6, 7, 9, True)
    abi = load_abi("OperatorRegistry")

    def call(parameters: dict[str, str], block: str) -> str:
        offset, limit = abi.function("operators", 2).decode_arguments(bytes.fromhex(parameters["data"][10:]))
        asked.append((offset, limit, block))
        page = [operator] * min(limit, 120 - offset)
        # a call's arguments are encoded like a function's results
        encoder = Abi([{"type": "function", "name": "f", "inputs": [{"type": _OPERATORS}]}])
        return "0x" + encoder.encode("f", page)[10:]

    found = await OperatorRegistry(scripted_chain({"eth_call": call, "eth_blockNumber": "0x64"}), A).operators()
    assert len(found) == 120
    assert found[0].offer == Offer(
        key=B,
        endpoint="http://x",
        models=(Model("minilm", Hash("0x" + "00" * 31 + "01"), Wei(2), Wei(3)),),
        region="eu",
        device_class="h200",
        capacity=8,
    )
    standing = (found[0].stake, found[0].unbonding, found[0].withdrawable_at, found[0].held_until, found[0].paused)
    assert standing == (5, 6, 7, 9, True)
    assert asked == [(0, 50, "0x64"), (50, 50, "0x64"), (100, 50, "0x64")]


@pytest.mark.parametrize(
    ("tokens", "cost"),
    [((0, 0), 0), ((1, 0), 1), ((0, 1), 1), ((500_000, 0), 1), ((1_000_000, 1_000_000), 5), ((1, 333_333), 2)],
)
def test_an_answers_cost_is_rounded_up_once(tokens: tuple[int, int], cost: int) -> None:
    assert Model("minilm", Hash("0x" + "01" * 32), Wei(2), Wei(3)).cost(*tokens) == cost


_MODELS = "(string,bytes32,uint128,uint128)[]"
_OFFER = f"(address,string,string,string,uint32,{_MODELS})"
_OPERATORS = f"(address,address,string,string,string,uint32,{_MODELS},uint256,uint256,uint64,uint64,bool)[]"
