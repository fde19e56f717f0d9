"""Set-up's own pieces: the cache and its records, child programs, the order of parts, the words for failures."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quorate.errors import SetupError
from quorate.localnet.tools import Screen, Site, Tool, toolbox
from quorate.localnet.tools import parts as parts_module
from quorate.localnet.tools.cache import Cache, Entry
from quorate.localnet.tools.command import Cancelled, Command, explain, run
from quorate.localnet.tools.make import missing
from quorate.localnet.tools.parts import Part, Work, clean_environment, index_of_pip, part, set_constants
from quorate.localnet.tools.progress import Step, in_bytes, in_seconds
from tests.unit.setup_checkout import ROOT, is_alive, wait_until

ENTRY = Entry("thing-1.0-linux-x86_64-abc")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(ROOT, Cache(tmp_path / "cache/quorate"), {"HOME": str(tmp_path), "PATH": os.defpath})


def quiet() -> Screen:
    return Screen(io.StringIO())


# ------------------------------------------------------------ the cache


def kept(cache: Cache, files: dict[str, bytes], entry: Entry = ENTRY) -> Path:
    """A part with these files, as set-up leaves it."""
    cache.prepare()
    with cache.scratch(entry) as scratch:
        made = scratch / "made"
        for name, content in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(content)
        cache.keep(entry, made, 1.0)
    return cache.folder(entry)


def test_the_cache_follows_the_xdg_rules() -> None:
    assert Cache.of_user({"HOME": "/home/a"}).root == Path("/home/a/.cache/quorate")
    assert Cache.of_user({"HOME": "/home/a", "XDG_CACHE_HOME": "/big"}).root == Path("/big/quorate")
    assert Cache.of_user({"HOME": "/home/a", "XDG_CACHE_HOME": "relative"}).root == Path("/home/a/.cache/quorate")


def test_a_kept_part_is_ready_and_its_scratch_is_gone(site: Site) -> None:
    kept(site.cache, {"bin/tool": b"x"})
    assert site.cache.condition(ENTRY).is_ready
    assert list((site.cache.root / "tmp").iterdir()) == []


def test_a_part_that_was_never_made_is_missing_and_not_damaged(site: Site) -> None:
    condition = site.cache.condition(ENTRY)
    assert not condition.is_ready
    assert condition.fault == ""


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "bin/tool").unlink(), "is gone"),
        (lambda folder: (folder / "bin/tool").write_bytes(b""), "has 0 bytes and should have 5"),
        (lambda folder: (folder / "bin/tool").write_bytes(b"other"), "has been changed"),
        (lambda folder: (folder / ".quorate-part.json").write_text("{"), "no readable record"),
        (lambda folder: (folder / ".quorate-part.json").unlink(), "no readable record"),
    ],
)
def test_a_damaged_part_is_noticed_and_the_fault_is_named(
    site: Site, damage: Callable[[Path], None], fault: str
) -> None:
    damage(kept(site.cache, {"bin/tool": b"right"}))
    condition = site.cache.condition(ENTRY)
    assert not condition.is_ready
    assert fault in condition.fault


def test_a_part_that_was_only_copied_stays_ready(site: Site) -> None:
    folder = kept(site.cache, {"bin/tool": b"right"})
    os.utime(folder / "bin/tool", (1, 1))
    assert site.cache.condition(ENTRY).is_ready


def test_a_change_that_keeps_size_and_time_is_found_by_a_thorough_look(site: Site) -> None:
    folder = kept(site.cache, {"bin/tool": b"right"})
    before = (folder / "bin/tool").stat()
    (folder / "bin/tool").write_bytes(b"wrong")
    os.utime(folder / "bin/tool", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert site.cache.condition(ENTRY).is_ready
    assert not site.cache.condition(ENTRY, thorough=True).is_ready


def test_a_thorough_look_reads_what_pip_and_uv_recorded(site: Site) -> None:
    digest = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"  # sha256 of b"hello"
    site_packages = "lib/python3.11/site-packages"
    entry = replace(ENTRY, proof=(f"{site_packages}/*.dist-info/RECORD",))
    record = f"a.py,sha256={digest},5\na-1.dist-info/RECORD,,\n".encode()
    folder = kept(
        site.cache, {f"{site_packages}/a.py": b"hello", f"{site_packages}/a-1.dist-info/RECORD": record}, entry
    )
    assert site.cache.condition(entry, thorough=True).is_ready
    (folder / site_packages / "a.py").write_bytes(b"hullo")
    assert site.cache.condition(entry).is_ready
    assert "a.py has been changed" in site.cache.condition(entry, thorough=True).fault


def test_making_a_part_again_replaces_the_damaged_one(site: Site) -> None:
    (kept(site.cache, {"bin/tool": b"right"}) / "bin/tool").unlink()
    kept(site.cache, {"bin/tool": b"right"})
    assert site.cache.condition(ENTRY).is_ready


# ------------------------------------------------------------ programs


def command(script: str, folder: Path) -> Command:
    return Command(["sh", "-c", script], folder, os.environ, folder / "logs/x.log")


def execute(script: str, folder: Path, cancel: threading.Event | None = None) -> str:
    return run(command(script, folder), what="The thing", step=Step("thing", 1.0), cancel=cancel or threading.Event())


def test_a_program_returns_what_it_printed_and_keeps_it_in_the_log(tmp_path: Path) -> None:
    assert execute("echo out; echo err >&2", tmp_path) == "out\nerr\n"
    assert "out\nerr" in (tmp_path / "logs/x.log").read_text()


def test_a_failed_program_is_named_with_its_last_line_and_its_log(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="The thing could not be set up: it broke") as caught:
        execute("echo it broke; exit 3", tmp_path)
    assert "logs/x.log" in caught.value.fix


def test_a_program_that_does_not_exist_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no-such-program"):
        run(
            replace(command("", tmp_path), argv=["no-such-program"]),
            what="x",
            step=Step("x", 1.0),
            cancel=threading.Event(),
        )


def test_cancelling_ends_a_program_with_all_that_it_started(tmp_path: Path) -> None:
    cancel, pids = threading.Event(), tmp_path / "pids"

    def cancel_once_it_runs() -> None:
        wait_until(pids.exists)
        cancel.set()

    threading.Thread(target=cancel_once_it_runs).start()
    with pytest.raises(Cancelled):
        execute(f"sleep 300 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait", tmp_path, cancel)
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()), 5)


def test_progress_counts_what_a_program_writes(tmp_path: Path) -> None:
    step = Step("thing", 1.0, expected_bytes=8_000_000)
    python = f"import time; open({str(tmp_path / 'f')!r}, 'wb').write(bytes(8_000_000)); time.sleep(0.6)"
    run(
        replace(command("", tmp_path), argv=[sys.executable, "-c", python]),
        what="x",
        step=step,
        cancel=threading.Event(),
    )
    assert step.bytes >= 8_000_000
    assert "8 MB of about 8 MB" in step.line()


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Hash mismatch for `click==8.2.0`", "its hash differs"),
        ("npm error code EINTEGRITY", "its hash differs"),
        ("verifying module: checksum mismatch", "its hash differs"),
        ("error sending request for url: dns error", "cannot be reached"),
        ("npm error code ENOTFOUND", "cannot be reached"),
        ("dial tcp: lookup modules.example: no such host", "cannot be reached"),
        ("invalid peer certificate: UnknownIssuer", "certificate is not trusted"),
        ("HTTP status client error (403 Forbidden)", "refused the request"),
        ("No matching distribution found for uv==0.13.8", "does not have a package"),
        ("go: signal: killed", "too little free memory"),
    ],
)
def test_the_usual_causes_are_told_in_plain_words_with_what_to_do(output: str, cause: str) -> None:
    error = explain("Go 1.27.3", f"lots of text\n{output}\nmore text\n", 1, Path("/log"))
    assert error.message.startswith("Go 1.27.3 could not be set up: ")
    assert cause in error.message
    assert "\n" not in error.message
    assert error.fix.endswith("The log: /log")


# ------------------------------------------------------------ the parts


def test_every_pin_is_read_from_its_lock(site: Site) -> None:
    labels = {tool: part(site, tool).label for tool in Tool if tool is not Tool.MODELS}
    assert labels[Tool.COMETBFT] == "CometBFT 0.38.26"
    assert all(any(c.isdigit() for c in label) for label in labels.values())


def test_each_constant_is_set_where_it_stands_once_and_else_nothing_is_built(tmp_path: Path) -> None:
    constants = tmp_path / "constants.toml"
    constants.write_text('[[constant]]\nfile = "a/pool.go"\nfrom = "wait = 3 * Second"\nto = "wait = Second"\n')
    source = tmp_path / "a" / "pool.go"
    source.parent.mkdir()
    source.write_text("const (\n\twait = 3 * Second\n)\n")
    set_constants(tmp_path, constants)
    assert source.read_text() == "const (\n\twait = Second\n)\n"
    with pytest.raises(SetupError, match=r"a/pool\.go of CometBFT holds 'wait = 3 .* 0 times; expected once") as caught:
        set_constants(tmp_path, constants)
    assert "go.mod" in caught.value.fix


def test_a_missing_lock_says_which_and_what_to_do(site: Site, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cometbft/go\.mod is missing") as caught:
        part(replace(site, root=tmp_path), Tool.COMETBFT)
    assert "git status" in caught.value.fix


def test_another_c_library_or_processor_is_told_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    with pytest.raises(SetupError, match=r"anvil needs glibc 2\.35 or newer; this is glibc 2\.31"):
        parts_module._require_anvil_platform()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(SetupError, match="anvil has no package for linux-aarch64"):
        parts_module._require_anvil_platform()


def test_a_python_without_pip_and_venv_is_told_what_to_install(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_works", lambda *arguments: False)
    with pytest.raises(SetupError, match="neither pip nor a working venv") as caught:
        toolbox({Tool.UV}, False, quiet(), site=replace(site, environment={"PATH": ""}))
    assert "apt install python3-pip" in caught.value.fix


def test_pip_s_own_index_is_used_for_uv_unless_uv_has_one(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert index_of_pip(home) == "" or Path("/etc/pip.conf").exists()
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text("[global]\nindex-url = https://mirror.example/simple\n")
    assert clean_environment(home)["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert index_of_pip({**home, "PIP_INDEX_URL": "https://other.example/simple"}) == "https://other.example/simple"
    assert (
        clean_environment({**home, "UV_DEFAULT_INDEX": "https://uv.example"})["UV_DEFAULT_INDEX"]
        == "https://uv.example"
    )


# ------------------------------------------------------------ making several


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    makers: dict[Tool, Callable[[Work], None]],
    uses: dict[Tool, tuple[Tool, ...]] | None = None,
) -> None:
    """Parts of the given makers in place of the real ones."""

    def maker(tool: Tool, make: Callable[[Work], None]) -> Callable[[Site], Part]:
        needed = (uses or {}).get(tool, ())
        return lambda site: Part(tool, str(tool), "1", Entry(f"{tool}-1"), 10, 10, 1.0, make, uses=needed)

    monkeypatch.setattr(parts_module, "_MAKERS", {tool: maker(tool, make) for tool, make in makers.items()})
    monkeypatch.setattr(parts_module, "_system_program", lambda site, tool: None)
    monkeypatch.setattr("quorate.localnet.tools.make._WITH", {})
    monkeypatch.setattr("quorate.localnet.tools.make._link", lambda site, wanted: None)


def writes(work: Work) -> None:
    (work.folder / "file").write_text(work.part.label)


def test_a_part_is_made_after_those_it_uses_and_beside_the_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    both = threading.Barrier(2, timeout=10)  # passes only if two parts are made at the same time

    def first(work: Work) -> None:
        both.wait()
        order.append("go")
        writes(work)

    def other(work: Work) -> None:
        both.wait()
        writes(work)

    def second(work: Work) -> None:
        order.append("cometbft")
        writes(work)

    pretend(monkeypatch, {Tool.GO: first, Tool.COMETBFT: second, Tool.NODE: other}, {Tool.COMETBFT: (Tool.GO,)})
    tools = toolbox({Tool.COMETBFT, Tool.NODE}, False, quiet(), site=site)
    assert order == ["go", "cometbft"]
    assert missing({Tool.COMETBFT, Tool.NODE}, site=site) == []
    assert tools.has == {Tool.COMETBFT, Tool.NODE}


def test_the_first_failure_ends_the_other_steps_and_is_the_one_that_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(work: Work) -> None:
        time.sleep(0.2)
        raise SetupError("it broke")

    def endless(work: Work) -> None:
        work.run("sleep", "300")

    pretend(monkeypatch, {Tool.GO: fails, Tool.NODE: endless})
    started = time.monotonic()
    with pytest.raises(SetupError, match="it broke"):
        toolbox({Tool.GO, Tool.NODE}, False, quiet(), site=site)
    assert time.monotonic() - started < 10
    assert list((site.cache.root / "tmp").iterdir()) == []


def test_too_little_disk_is_told_before_anything_is_made(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    pretend(monkeypatch, {Tool.GO: lambda work: made.append("go")})
    monkeypatch.setattr(Cache, "free_bytes", lambda self: 100_000_000)
    with pytest.raises(SetupError, match=r"Set-up needs 200 MB of disk \(go 1 MB\); 100 MB are free in") as caught:
        toolbox({Tool.GO}, False, quiet(), site=site)
    assert "XDG_CACHE_HOME" in caught.value.fix
    assert made == []


def test_a_disk_that_fills_while_a_part_is_written_is_one_sentence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fills(work: Work) -> None:
        raise OSError(28, "No space left on device", str(work.folder))

    pretend(monkeypatch, {Tool.GO: fills})
    with pytest.raises(SetupError, match="go 1 could not be set up: No space left on device"):
        toolbox({Tool.GO}, False, quiet(), site=site)


def test_a_damaged_part_is_made_anew_and_that_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {Tool.GO: writes})
    toolbox({Tool.GO}, False, quiet(), site=site)
    (site.cache.root / "go-1/file").write_text("garbage")
    said = io.StringIO()
    toolbox({Tool.GO}, False, Screen(said), site=site)
    assert "go 1 in the cache is damaged" in said.getvalue()
    assert (site.cache.root / "go-1/file").read_text() == "go 1"


def test_a_damaged_part_is_not_used_offline(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {Tool.GO: writes})
    toolbox({Tool.GO}, False, quiet(), site=site)
    (site.cache.root / "go-1/file").write_text("garbage")
    with pytest.raises(SetupError, match="--offline, but this part is not in the cache: go 1"):
        toolbox({Tool.GO}, True, quiet(), site=site)


def test_a_tool_that_was_not_asked_for_is_an_error_and_not_a_wrong_path(site: Site) -> None:
    with pytest.raises(SetupError, match="cometbft was not asked for") as caught:
        _ = toolbox((), True, quiet(), site=site).cometbft
    assert "--only cometbft" in caught.value.fix


def test_sigterm_is_handled_as_before_once_set_up_is_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {Tool.GO: writes})
    before = signal.getsignal(signal.SIGTERM)
    toolbox({Tool.GO}, False, quiet(), site=site)
    assert signal.getsignal(signal.SIGTERM) is before


# ------------------------------------------------------------ what a person sees


def test_the_status_comes_at_the_given_interval_and_the_times_after() -> None:
    out = io.StringIO()
    screen = Screen(out, interval_s=0.02)
    step = Step("CometBFT", 95)
    with screen:
        screen.begin(step, "CometBFT 0.38.26: building")
        wait_until(lambda: "... CometBFT: 0 s of about 95 s" in out.getvalue(), 5)
        screen.end(step, "CometBFT 0.38.26: ready after 94 s")
    assert out.getvalue().startswith("quorate: CometBFT 0.38.26: building\n")
    assert out.getvalue().endswith("quorate: CometBFT 0.38.26: ready after 94 s\n")


def test_a_terminal_gets_one_status_line_that_fits() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    step = Step("x" * 300, 1)
    with Screen(out, interval_s=0.02) as screen:
        screen.begin(step, "begin")
        wait_until(lambda: out.getvalue().count("xxx") > 0, 5)
    assert out.getvalue().endswith("\r\x1b[K")
    assert all(len(line) < 400 for line in out.getvalue().split("\r"))


def test_sizes_and_durations_are_written_for_people() -> None:
    assert [in_bytes(n) for n in (0, 1, 28_400_000, 3_300_000_000)] == ["0 MB", "1 MB", "28 MB", "3.3 GB"]
    assert [in_seconds(s) for s in (3.21, 8, 94.4, 227)] == ["3.2 s", "8 s", "94 s", "3 min 47 s"]
