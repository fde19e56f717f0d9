"""`new NAME`: what it writes runs as it is (its own tests: see tests/docs), and it never writes over anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from quorate.cli.new import create
from quorate.errors import ConfigError
from quorate.loader import load_service, load_settings

ROOT = Path(__file__).parents[2]


def test_a_new_service_loads_and_is_clean(tmp_path: Path) -> None:
    folder = create(tmp_path, "price_feed")
    service = load_service(folder)
    assert service.name == "price_feed"
    assert load_settings(service, folder).agents == 4
    ruff = [sys.executable, "-P", "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), str(folder)]
    done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_its_agent_package_is_that_of_hello_world_under_its_own_name(tmp_path: Path) -> None:
    create(tmp_path, "price_feed")
    written = yaml.safe_load((tmp_path / "agents/price_feed/aea-config.yaml").read_text())
    known = yaml.safe_load((ROOT / "agents/hello_world/aea-config.yaml").read_text())
    assert written["agent_name"] == "price_feed"
    assert {**written, "agent_name": "", "description": ""} == {**known, "agent_name": "", "description": ""}


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("Price-Feed", "price_feed"),
        ("2fast", "price_feed"),
        ("class", "price_feed"),
        ("a__b", "a_b"),
        ("../x", "new x"),
        ("", "price_feed"),
        ("x" * 31, "x" * 30),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(tmp_path: Path, name: str, better: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a service") as error:
        create(tmp_path, name)
    assert better in error.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["services/shop", "agents/shop"])
def test_what_exists_is_left_alone(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{taken} exists already"):
        create(tmp_path, "shop")
    assert [str(one.relative_to(tmp_path)) for one in tmp_path.glob("*/*")] == [taken]
