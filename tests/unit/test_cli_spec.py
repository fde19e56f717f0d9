"""`spec SERVICE`: the FSM specification is derived from the code, and CI sees when it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from quorate.cli.spec import spec
from quorate.errors import ConfigError

HELLO = Path(__file__).parents[2] / "services" / "hello_world"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "services" / "hello_world"
    shutil.copytree(HELLO, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_it_writes_the_specification_beside_the_code(folder: Path) -> None:
    file = folder / "fsm_specification.yaml"
    file.unlink()
    first = CliRunner().invoke(spec, [str(folder)], catch_exceptions=False)
    assert first.output == f"{file} written\n"
    assert file.read_text() == (HELLO / "fsm_specification.yaml").read_text()
    assert CliRunner().invoke(spec, [str(folder)]).output == f"{file} is up to date\n"


def test_check_writes_nothing_and_passes_when_equal(folder: Path) -> None:
    assert CliRunner().invoke(spec, [str(folder), "--check"], catch_exceptions=False).exit_code == 0


def test_check_fails_when_the_file_differs_or_is_missing(folder: Path) -> None:
    file = folder / "fsm_specification.yaml"
    file.write_text("label: other\n")
    with pytest.raises(ConfigError, match="differs from the service's code") as error:
        CliRunner().invoke(spec, [str(folder), "--check"], catch_exceptions=False)
    assert error.value.fix == f"Run: ./quorate spec {folder}"
    assert file.read_text() == "label: other\n"
    file.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        CliRunner().invoke(spec, [str(folder), "--check"], catch_exceptions=False)
    assert not file.exists()


def test_a_missing_service_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no service folder"):
        CliRunner().invoke(spec, [str(tmp_path / "nothing")], catch_exceptions=False)
