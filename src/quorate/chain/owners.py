"""How a Safe's owners follow the members of a service: the calls that it makes of itself. Pure.

All in one transaction of the Safe: whoever comes and goes, and the threshold. A Safe keeps its owners as a list in
which each names the next one, so a call that takes one out names the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

from eth_utils.address import to_checksum_address

from quorate.chain.safe import _SENTINEL, _abi
from quorate.units import Address, Call, Wei

__all__ = ["is_owner_change", "owner_calls"]


def owner_calls(
    safe: Address,
    owners: Sequence[Address],
    threshold_now: int,
    *,
    come: Address | None,
    go: Address | None,
    threshold: int,
) -> tuple[Call, ...]:
    """What `safe` has to call of itself so that `come` is an owner, `go` is none, and `threshold` of them suffice.

    `owners` in the order in which the Safe tells them (`getOwners`). Empty where nothing is left to do.
    """
    come = None if come in owners else come
    if go is None or go not in owners:
        steps = [] if come is None else [_call(safe, "addOwnerWithThreshold", come, threshold)]
    else:
        at = owners.index(go)
        before = owners[at - 1] if at else _SENTINEL
        if come is None:
            steps = [_call(safe, "removeOwner", before, go, threshold)]
        else:
            steps = [_call(safe, "swapOwner", before, go, come)]
            steps += [_call(safe, "changeThreshold", threshold)] if threshold != threshold_now else []
    if not steps and threshold != threshold_now:
        steps = [_call(safe, "changeThreshold", threshold)]
    return tuple(steps)


def is_owner_change(
    calls: Sequence[Call], safe: Address, *, come: Address | None, go: Address | None, threshold: int
) -> bool:
    """Whether `calls` are some that `owner_calls` gives for this change, whatever the Safe's list is; nothing else is.

    The owner named as the one before is not looked at: with a wrong one the Safe refuses the call.
    """
    before = _named_before(calls)
    change = _call(safe, "changeThreshold", threshold)
    allowed: list[tuple[Call, ...]] = [(change,)]
    allowed += [(_call(safe, "addOwnerWithThreshold", come, threshold),)] if come else []
    allowed += [(_call(safe, "removeOwner", before, go, threshold),)] if go else []
    if come and go:
        swap = _call(safe, "swapOwner", before, go, come)
        allowed += [(swap,), (swap, change)]
    return tuple(calls) in allowed


def _named_before(calls: Sequence[Call]) -> Address:
    """The address in the first argument of the first call; the list's end where there is none."""
    word = calls[0].data[10:74] if calls else ""
    try:
        return Address(to_checksum_address(bytes.fromhex(word)[-20:]))
    except ValueError:
        return _SENTINEL


def _call(safe: Address, function: str, *arguments: object) -> Call:
    return Call(safe, Wei(0), _abi("Safe").encode(function, *arguments))
