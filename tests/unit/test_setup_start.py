"""The start of everything: `./quorate` on a machine with Python and nothing of ours, and what can go wrong there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.setup_checkout import ROOT, TIMEOUT_S, Checkout, is_alive, wait_until


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout.make(tmp_path / "a folder")  # a space in a path must not matter


def is_one_clear_error(text: str) -> bool:
    """One `error:` sentence and what to do, and no traceback."""
    return len(re.findall(r"^error: ", text, re.MULTILINE)) == 1 and "\n       " in text and "Traceback" not in text


def leftovers(checkout: Checkout) -> list[str]:
    """What an ended set-up must not leave: half-made parts."""
    return [path.name for path in checkout.cache.glob("tmp/*")]


def test_the_first_start_makes_the_environment_and_says_so_on_stderr(checkout: Checkout) -> None:
    done = checkout.run("--help")
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout
    assert "quorate:" not in done.stdout
    assert re.search(r"Python packages \(\d+ locked\): fetching \(\d+ MB, \d+ MB on disk, about", done.stderr)
    assert "ready after" in done.stderr
    assert (checkout.root / ".venv").is_symlink()
    assert leftovers(checkout) == []


def test_the_second_start_installs_nothing_says_nothing_and_is_quick(checkout: Checkout) -> None:
    checkout.run("--help")
    started = time.monotonic()
    done = checkout.run("--help")
    assert done.stderr == ""
    assert checkout.syncs == 1
    assert time.monotonic() - started < 2.0  # under 0.3 s on an idle machine


def test_it_starts_from_any_folder_and_through_a_symbolic_link(checkout: Checkout, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.mkdir()
    (link / "q").symlink_to(checkout.root / "quorate")
    done = subprocess.run(
        [link / "q", "--help"], cwd=link, env=checkout.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout


def test_a_changed_lock_makes_a_new_environment(checkout: Checkout) -> None:
    checkout.run("--help")
    lock = checkout.root / "third_party/python/dev.txt"
    lock.write_text(lock.read_text() + "# changed\n")
    assert checkout.run("--help").returncode == 0
    assert checkout.syncs == 2
    assert len(checkout.environments) == 2


def test_a_vanished_cache_is_made_again(checkout: Checkout) -> None:
    checkout.run("--help")
    checkout.cache.rename(checkout.home / "gone")
    done = checkout.run("--help")
    assert done.returncode == 0, done.stderr
    assert checkout.syncs == 2


def test_a_folder_named_venv_of_the_users_own_is_left_alone(checkout: Checkout) -> None:
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv/mine").touch()
    assert checkout.run("--help").returncode == 0
    assert (checkout.root / ".venv/mine").exists()


def test_a_wrong_python_is_named_with_what_is_needed(checkout: Checkout) -> None:
    old = checkout.bin / "old python"
    old.write_text('#!/bin/sh\ncase "$2" in *exit*) exit 1 ;; *) echo "Python 3.9.2" ;; esac\n')
    old.chmod(0o755)
    done = checkout.run("--help", QUORATE_PYTHON=str(old))
    assert done.returncode == 1
    assert is_one_clear_error(done.stderr)
    assert "Python 3.11, 3.12 or 3.13 is needed; found: Python 3.9.2" in done.stderr


def test_no_python_at_all_is_one_sentence(checkout: Checkout) -> None:
    for name in ("sh", "dirname", "readlink", "sha256sum"):
        (checkout.bin / name).symlink_to(f"/usr/bin/{name}")
    (checkout.bin / "python3").unlink()
    done = checkout.run("--help", PATH=str(checkout.bin))
    assert done.returncode == 1
    assert is_one_clear_error(done.stderr)
    assert "found: none" in done.stderr


def test_a_failed_installation_is_one_sentence_with_its_cause(checkout: Checkout) -> None:
    checkout.uv_does("failed to write to file: No space left on device (os error 28)")
    done = checkout.run("--help")
    assert done.returncode == 1
    assert is_one_clear_error(done.stderr)
    assert "the disk is full" in done.stderr
    assert str(checkout.cache / "logs/python.log") in done.stderr
    assert checkout.environments == []
    assert leftovers(checkout) == []


def test_after_a_failure_the_same_command_goes_on(checkout: Checkout) -> None:
    checkout.uv_does("Connection refused")
    assert checkout.run("--help").returncode == 1
    checkout.uv_does("ok")
    assert checkout.run("--help").returncode == 0


def test_offline_with_a_missing_part_names_it_and_fetches_nothing(checkout: Checkout) -> None:
    done = checkout.run("doctor", "--offline")
    assert "missing python" in done.stdout
    for done in (checkout.run("--offline", "--help"), checkout.run("--help", QUORATE_OFFLINE="1")):
        assert done.returncode == 1
        assert is_one_clear_error(done.stderr)
        assert re.search(
            r"--offline, but this part is not in the cache: Python packages \(\d+ locked\) \(python\)", done.stderr
        )
    assert checkout.syncs == 0


def test_offline_names_every_missing_part(checkout: Checkout) -> None:
    checkout.run("--help")
    done = checkout.run("setup", "--only", "cometbft", "--only", "model-env", "--offline")
    assert done.returncode == 1
    assert is_one_clear_error(done.stderr)
    assert (
        "these 2 parts are not in the cache: CometBFT 0.38.26 (cometbft), vLLM for CPUs 0.32.0 (model-env)"
        in done.stderr
    )
    assert "./quorate setup --only cometbft --only model-env" in done.stderr


def test_offline_works_once_all_is_there(checkout: Checkout) -> None:
    checkout.run("--help")
    assert checkout.run("--offline", "--help").returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_set_up_leaves_nothing_running_and_can_be_run_again(
    checkout: Checkout, number: signal.Signals, code: int
) -> None:
    checkout.uv_does("hang")
    process = checkout.start("--help")
    children = checkout.hanging_children()
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "stopping" in err
    assert not any(is_alive(pid) for pid in children)
    assert leftovers(checkout) == []
    checkout.uv_does("ok")
    assert checkout.run("--help").returncode == 0


def test_a_killed_set_up_takes_its_child_with_it_and_the_next_one_clears_up(checkout: Checkout) -> None:
    checkout.uv_does("hang")
    process = checkout.start("--help")
    installer, its_child = checkout.hanging_children()
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    wait_until(lambda: not is_alive(installer))
    os.kill(its_child, signal.SIGKILL)  # a grandchild that a real uv does not have
    assert leftovers(checkout) != []
    checkout.uv_does("ok")
    assert checkout.run("--help").returncode == 0
    assert leftovers(checkout) == []


def test_two_set_ups_at_once_install_once_and_both_work(checkout: Checkout) -> None:
    checkout.uv_does("slow")
    both = [checkout.start("--help"), checkout.start("--help")]
    errors = [process.communicate(timeout=TIMEOUT_S)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert checkout.syncs == 1
    assert any("waiting for another set-up" in err for err in errors)


def test_a_damaged_environment_is_noticed_and_made_anew(checkout: Checkout) -> None:
    checkout.run("--help")
    (environment,) = checkout.environments
    (environment / "pyvenv.cfg").write_text("home = /nowhere/at/all/and/longer/than/before\n")
    (checkout.root / ".venv").unlink()
    done = checkout.run("--help")
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stderr
    assert checkout.syncs == 2


def test_an_unwritable_cache_is_one_sentence(checkout: Checkout) -> None:
    done = checkout.run("--help", XDG_CACHE_HOME="/proc/nowhere")
    assert done.returncode == 1
    assert is_one_clear_error(done.stderr)
    assert "/proc/nowhere/quorate cannot be written" in done.stderr
    assert "XDG_CACHE_HOME" in done.stderr


def test_an_unknown_command_is_exit_code_2_and_no_traceback(checkout: Checkout) -> None:
    done = checkout.run("fly")
    assert done.returncode == 2
    assert "No such command 'fly'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_shows_its_traceback_only_on_request(checkout: Checkout) -> None:
    checkout.uv_does("Connection refused")
    assert "Traceback" not in checkout.run("--help").stderr
    assert "Traceback" in checkout.run("--help", QUORATE_DEBUG="1").stderr


def test_the_bootstrap_needs_nothing_but_the_standard_library() -> None:
    modules = ("boot", "doctor")
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n" + "".join(
        f"import quorate.localnet.tools.{name}\n" for name in modules
    )
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


SHELLS = [s for s in ("dash", "busybox", "bash", "ksh", "mksh", "yash") if shutil.which(s, path="/usr/bin:/bin")]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_plain_posix_shell(shell: str, checkout: Checkout) -> None:
    mode = {"busybox": ["sh"], "bash": ["--posix"]}.get(shell, [])
    argv = [shell, *mode, str(checkout.root / "quorate"), "--help"]
    done = subprocess.run(argv, env=checkout.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout
