"""The judge of the real-node faults sees what it is there for, and nothing where all is well."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fault.oracle import Judge, Violation


def commit(height: int, app_hash: str = "") -> dict[str, Any]:
    return {"kind": "commit", "t": 1.0, "height": height, "app_hash": app_hash or f"h{height}"}


def settled(sequence: int, height: int, value: int | None = None, digest: str = "d") -> dict[str, Any]:
    return {
        "kind": "settled", "t": 1.0, "sequence": sequence, "height": height, "event": "DONE", "digest": digest,
        "value": sequence if value is None else value,
    }  # fmt: skip


def loaded(height: int) -> dict[str, Any]:
    return {"kind": "loaded", "t": 0.5, "height": height}


def hear(*told: tuple[int, dict[str, Any]]) -> Judge:
    judge = Judge()
    for who, event in told:
        judge.hear(who, event)
    judge.at_the_end()
    return judge


def test_agents_that_agree_are_left_in_peace() -> None:
    judge = hear(
        (0, loaded(0)), (0, commit(1)), (0, commit(2)), (0, settled(1, 2)), (1, loaded(0)), (1, commit(1)),
        (1, loaded(1)), (1, commit(2)), (1, settled(1, 2)), (0, commit(3)), (0, settled(2, 3)), (1, loaded(0)),
        (1, commit(3)),
    )  # fmt: skip
    assert (judge.last, judge.rounds, judge.height(1)) == (3, 2, 3)
    assert judge.compared == 4


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([(0, commit(1)), (1, commit(1, "other"))], "app hash"),
        ([(0, commit(1)), (0, loaded(0)), (0, commit(1, "other"))], "app hash"),
        ([(0, settled(1, 2)), (1, settled(1, 3))], "round 1 ended as"),
        ([(0, settled(1, 2)), (1, settled(1, 2, digest="e"))], "round 1 ended as"),
        ([(0, settled(1, 2)), (0, settled(2, 3, value=3))], "counts"),
        ([(0, settled(2, 3)), (1, settled(1, 2, value=2))], "counts"),
        ([(0, settled(1, 2)), (0, settled(3, 4))], "nobody has seen the end of \\[2\\]"),
        ([(0, commit(1)), (0, commit(3))], "commits block 3 after block 1"),
        ([(0, commit(1)), (0, commit(1))], "commits block 1 after block 1"),
    ],
)
def test_what_must_not_be_is_a_violation(told: list[tuple[int, dict[str, Any]]], said: str) -> None:
    with pytest.raises(Violation, match=said):
        hear(*told)
