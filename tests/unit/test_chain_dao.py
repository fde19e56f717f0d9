"""The DAO's settings are whole and sane before anything is deployed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dao.deploy import Dao, load_settings
from quorate.errors import ConfigError
from quorate.units import Address

SETTINGS = Path(__file__).resolve().parents[2] / "dao/settings.yaml"
DAO = Dao(31337, 5, *(Address("0x" + digit * 40) for digit in "12345"))


def test_the_committed_settings_load_and_a_local_chain_may_shorten_them() -> None:
    assert load_settings(SETTINGS).timelock_delay_s == 172_800
    assert load_settings(SETTINGS, voting_delay_s=1).voting_delay_s == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("timelock_delay_s", 0), ("voting_period_s", 0), ("quorum_percent", 0), ("quorum_percent", 101),
     ("minimum_stake", 0), ("unbonding_delay_s", -1), ("close_delay_s", 0), ("voting_delay_s", -1),
     ("proposal_threshold", -1)],
)  # fmt: skip
def test_a_setting_that_would_brick_or_open_the_dao_is_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        load_settings(SETTINGS, **{name: value})


@pytest.mark.parametrize("text", ["[]", "voting_delay_s: 1", "{", "voting_delay_s: [1"])
def test_a_file_that_lacks_something_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        load_settings(path)


def test_a_value_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS.read_text().replace("quorum_percent: 4", "quorum_percent: 4.5"))
    with pytest.raises(ConfigError, match="quorum_percent"):
        load_settings(path)
    with pytest.raises(ConfigError, match="no_such"):
        load_settings(SETTINGS, no_such=1)


def test_a_deployment_reads_back_from_its_json() -> None:
    assert Dao.from_json(DAO.to_json()) == DAO
    assert DAO.treasury == DAO.timelock
    assert DAO.book({DAO.registry: "mine"}).show(DAO.registry) == f"mine ({DAO.registry})"
