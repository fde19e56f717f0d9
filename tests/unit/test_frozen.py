from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import pytest

from quorate.frozen import changed


@dataclass(frozen=True)
class Sum:
    a: int
    b: int = 2

    @cached_property
    def total(self) -> int:
        return self.a + self.b


def test_a_changed_copy_is_what_replace_makes_and_leaves_the_original_alone() -> None:
    one = Sum(1)
    assert changed(one, b=5) == dataclasses.replace(one, b=5) == Sum(1, 5)
    assert one == Sum(1, 2)


def test_a_changed_copy_works_anew_what_the_original_has_remembered() -> None:
    one = Sum(1)
    assert one.total == 3
    assert changed(one, a=7).total == 9


def test_a_name_that_is_no_field_is_refused() -> None:
    with pytest.raises(TypeError, match="Sum has no fields"):
        changed(Sum(1), c=1)
