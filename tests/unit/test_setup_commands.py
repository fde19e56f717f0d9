"""The commands around set-up: help, doctor, test's choice of tools, lock's inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.testing import CliRunner

from quorate.cli import __main__ as entry
from quorate.cli import _selection, check
from quorate.cli import lock as lock_command
from quorate.cli import main as group
from quorate.cli import test as test_command
from quorate.errors import SetupError
from quorate.localnet.tools import Site, Tool
from quorate.localnet.tools import doctor as doctor_module
from quorate.localnet.tools.cache import Cache
from quorate.localnet.tools.doctor import as_json, examine, exit_code, report
from tests.unit.setup_checkout import ROOT


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(ROOT, Cache(tmp_path / "cache/quorate"), {"HOME": str(tmp_path), "PATH": "", "QUORATE_OFFLINE": "1"})


def test_help_names_every_command_and_the_first_two_to_type() -> None:
    shown = CliRunner().invoke(group.main, ["--help"]).output
    assert all(f"\n  {name} " in shown for name in group.COMMANDS)
    assert "./quorate demo" in shown
    assert "./quorate doctor" in shown


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert CliRunner().invoke(group.main, ["--version"]).output == f"quorate, version {project['version']}\n"


def test_the_help_of_test_is_ours() -> None:
    assert "./quorate test -m" in CliRunner().invoke(test_command.test, ["--help"]).output


def test_help_imports_nothing_heavy() -> None:
    program = "import sys, quorate.cli.main; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    loaded = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert not {"web3", "aea", "aiohttp", "rich", "asyncio", "quorate.host", "quorate.chain"} & set(loaded.split())


def test_a_command_whose_module_is_not_there_breaks_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "COMMANDS", {**group.COMMANDS, "fly": "Fly."})
    assert "fly" in CliRunner().invoke(group.main, ["--help"]).output
    with pytest.raises(SetupError, match="The command fly is not in this checkout"):
        CliRunner().invoke(group.main, ["fly"], catch_exceptions=False)


def test_tests_that_never_say_integration_are_not_collected_twice(tmp_path: Path) -> None:
    plain, real = tmp_path / "plain/test_a.py", tmp_path / "real/test_b.py"
    for path, text in ((plain, "def test_a(): pass"), (real, "@pytest.mark.integration\ndef test_b(): pass")):
        path.parent.mkdir()
        path.write_text(text)
    assert not test_command._may_need_tools([str(plain.parent), "-q", "-k", "a"])
    assert not test_command._may_need_tools([f"{plain}::test_a"])
    assert test_command._may_need_tools([str(plain), str(real)])
    assert test_command._may_need_tools(["-k", "a"]), "all tests"


def test_offline_may_stand_anywhere_before_the_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_OFFLINE", "")
    assert entry._without_offline(["test", "--", "--offline"]) == ["test", "--", "--offline"]
    assert os.environ["QUORATE_OFFLINE"] == ""
    assert entry._without_offline(["demo", "--offline", "--json"]) == ["demo", "--json"]
    assert os.environ["QUORATE_OFFLINE"] == "1"


def test_an_error_of_ours_is_two_lines_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "COMMANDS", {"fly": "Fly."})
    assert entry.run(["fly"]) == 1
    assert capsys.readouterr().err == (
        "error: The command fly is not in this checkout (quorate.cli.fly is missing).\n"
        "       Update the checkout: git pull\n"
    )


def test_a_wrong_option_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["setup", "--only", "everything"]) == 2
    assert "cometbft" in capsys.readouterr().err


# ------------------------------------------------------------ doctor


def test_the_doctor_looks_at_the_machine_and_at_every_part(site: Site) -> None:
    findings = examine(site)
    checks = [f.check for f in findings]
    assert len(checks) >= 12
    assert len(set(checks)) == len(checks)
    assert set(Tool) <= set(checks)
    for finding in findings:
        assert finding.found
        assert finding.meaning
        assert finding.fix or finding.state in ("ok", "note"), f"{finding.check} says nothing to do"


def test_the_doctor_changes_nothing(site: Site) -> None:
    examine(site)
    assert not site.cache.root.exists()


def test_what_set_up_will_make_is_missing_and_no_fault(site: Site) -> None:
    found = {f.check: f for f in examine(site)}
    assert found[Tool.COMETBFT].state == "missing"
    assert found[Tool.COMETBFT].fix == "./quorate setup --only cometbft"
    assert "offline" in found["network"].found


def test_the_doctor_s_json_is_the_same_findings(site: Site) -> None:
    findings = examine(site)
    content = json.loads(as_json(findings))
    assert [c["check"] for c in content["checks"]] == [f.check for f in findings]
    assert set(content["checks"][0]) == {"check", "state", "found", "meaning", "fix"}
    assert content["ok"] is (exit_code(findings) == 0)


def test_what_is_in_the_way_makes_exit_code_1_and_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "free_bytes", lambda self: 1_000_000)
    findings = examine(site)
    assert exit_code(findings) == 1
    assert "in the way: " in report(findings)
    assert "disk" in report(findings).splitlines()[-1]


def test_a_processor_that_vllm_cannot_use_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_cpu_flags", lambda: frozenset({"sse2"}))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    finding = next(f for f in examine(site) if f.check == "processor")
    assert finding.state == "bad"
    assert "AVX2" in finding.meaning


# ------------------------------------------------------------ test


@pytest.mark.parametrize(
    ("arguments", "excludes"),
    [
        (["-m", "not integration"], True),
        (["-mnot integration"], True),
        (["-q", "-m", "not integration", "tests/unit"], True),
        (["-m", "integration"], False),
        (["-m", "not integration or needs"], False),
        (["tests/unit"], False),
        ([], False),
        (["--help"], True),
    ],
)
def test_not_integration_is_understood_without_asking_pytest(arguments: list[str], excludes: bool) -> None:
    assert test_command._excludes_integration(arguments) is excludes


@pytest.mark.parametrize(
    ("arguments", "may"),
    [
        (["-m", "not integration"], True),
        (["-m", "not integration", "-q", "-x"], True),
        ([], False),
        (["-m", "integration"], False),
        (["-m", "not integration", "-s"], False),
        (["-m", "not integration", "--pdb"], False),
        (["-m", "not integration", __file__], False),
    ],
)
def test_only_all_fast_tests_at_once_share_the_cores(arguments: list[str], may: bool) -> None:
    assert test_command._may_share_cores(arguments) is may


class Item:
    """As much of a pytest item as the choice of tools looks at."""

    def __init__(self, *marks: pytest.Mark) -> None:
        self.marks = marks

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        return [mark for mark in self.marks if mark.name == name]

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return next(iter(self.iter_markers(name)), None)


def test_the_selection_decides_which_tools_are_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    integration, needs = pytest.mark.integration.mark, pytest.mark.needs("cometbft").mark
    answer = tmp_path / "needs"
    monkeypatch.setenv("QUORATE_NEEDS_FILE", str(answer))
    for items, tools in (
        ([Item()], ""),
        ([Item(), Item(integration, needs)], "cometbft"),
        ([Item(integration), Item(integration, needs)], "cometbft evm model-env models"),
    ):
        _selection.pytest_collection_finish(cast(pytest.Session, SimpleNamespace(items=items)))
        assert answer.read_text().split() == tools.split()


def test_paths_given_from_another_folder_still_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_x.py").touch()
    monkeypatch.chdir(tmp_path)
    given = ["-k", "name", "test_x.py", "test_x.py::test_y", "-x"]
    assert test_command._absolute(given) == [
        "-k",
        "name",
        f"{tmp_path}/test_x.py",
        f"{tmp_path}/test_x.py::test_y",
        "-x",
    ]


# ------------------------------------------------------------ the locks


def test_every_lock_has_hashes_for_every_package_and_names_no_host() -> None:
    for lock in sorted((ROOT / "third_party/python").glob("*.txt")):
        text = lock.read_text()
        packages = [block for block in text.replace("\\\n", " ").splitlines() if block and not block.startswith("#")]
        assert packages
        assert all("--hash=sha256:" in block for block in packages), lock
        assert "://" not in text, lock


def test_every_lock_but_the_project_s_own_says_what_it_was_made_from() -> None:
    folder = ROOT / "third_party/python"
    assert {p.stem for p in folder.glob("*.in")} == {p.stem for p in folder.glob("*.txt")} - {"dev"}


@pytest.mark.parametrize(("arguments", "code", "after"), [([], 0, "new"), (["--check"], 1, "old")])
def test_a_lock_is_replaced_whole_and_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, after: str
) -> None:
    lock = tmp_path / "third_party/python/go.txt"
    lock.parent.mkdir(parents=True)
    lock.write_text("old")
    monkeypatch.setattr(Site, "here", lambda: Site(tmp_path, Cache(tmp_path / "cache"), {}))
    monkeypatch.setattr(lock_command, "_lock_python", lambda site, name, new, before: new.write_text("new"))
    done = CliRunner().invoke(lock_command.lock, ["--only", "go", *arguments])
    assert done.exit_code == code
    assert "go (nothing younger than" in done.output
    assert lock.read_text() == after
    assert [path.name for path in lock.parent.iterdir()] == ["go.txt"]


def test_a_check_of_two_commands_fails_with_either() -> None:
    passes, fails = (sys.executable, "-c", ""), (sys.executable, "-c", "raise SystemExit(2)")
    assert check._passes(check._Check("both", passes, passes))
    assert not check._passes(check._Check("second", passes, fails))
    assert not check._passes(check._Check("first", fails, passes))
