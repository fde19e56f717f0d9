"""The fuzzers' CI length: the kept corpus and a moment of new inputs; and that each of them finds a fault put in.

`.ci/nightly` runs them for 10 minutes each: python -m tests.fuzz all --seconds 600.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quorate import service_yaml
from quorate.abci import anchor, app, machine, server
from quorate.chain import client
from quorate.model import receipt, schema
from quorate.nesting import load_json
from tests.fuzz.engine import CORPUS, Target, fuzz, kept
from tests.fuzz.targets import TARGETS

MOMENT_S = 0.3
LONGEST_SEARCH_S = 60


@pytest.fixture
def started() -> Iterator[Callable[[str], Target]]:
    """Makes targets that are closed in the end."""
    targets: list[Target] = []

    def start(name: str) -> Target:
        targets.append(TARGETS[name]())
        return targets[-1]

    yield start
    for target in targets:
        target.close()


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_declared_errors_comes_of_the_kept_corpus_and_of_a_moment_of_new_inputs(
    name: str, started: Callable[[str], Target]
) -> None:
    report = fuzz(started(name), seconds=MOMENT_S)
    if report.crash is not None:
        raise AssertionError(f"{name} broke at {report.crash.data!r}") from report.crash.error
    assert report.runs > len(kept(name))


def test_the_kept_corpus_is_small_and_text() -> None:
    files = sorted(CORPUS.iterdir())
    assert {path.stem for path in files} <= set(TARGETS)
    assert sum(path.stat().st_size for path in files) < 30_000
    assert all(path.read_bytes().isascii() for path in files)


def _resynchronise(patch: pytest.MonkeyPatch) -> None:
    """After a frame that is no request, the next frame is tried."""
    read = server._read_request

    async def read_on(reader: Any) -> Any:
        while True:
            try:
                return await read(reader)
            except server.FrameError:
                continue

    patch.setattr(server, "_read_request", read_on)


def _count_twice(patch: pytest.MonkeyPatch) -> None:
    """Nothing but the round's number is compared."""
    patch.setattr(machine.Replica, "why_not", lambda self, payload: None)


def _propose_blindly(patch: pytest.MonkeyPatch) -> None:
    """The proposer does not look whether what it proposes counts."""
    patch.setattr(app, "_counted", lambda replica, tx: replica)


def _skip_blanks(patch: pytest.MonkeyPatch) -> None:
    """Two spellings of one hash: the fault that this fuzzer found first."""

    def read(text: object, length: int) -> bytes:
        if isinstance(text, str) and text.startswith("0x") and len(text) == 2 + 2 * length and text == text.lower():
            return bytes.fromhex(text[2:])
        raise ValueError("no hex")

    patch.setattr(receipt, "from_hex", read)


def _open_doors(patch: pytest.MonkeyPatch) -> None:
    """Tags reach YAML's own constructors: `!!bool x` is a KeyError there."""
    patch.setattr(service_yaml, "_refuse_doors", lambda text, where: None)


def _believe_numbers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client, "_number", lambda raw, digits=16: int(raw, 16))


def _believe_one_node(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(anchor, "quorum_of", lambda n: n)


def _keep_surrogates(patch: pytest.MonkeyPatch) -> None:
    def load(data: str | bytes, **hooks: Any) -> Any:
        try:
            return load_json(data, **hooks)
        except ValueError as error:
            if "Unicode" not in str(error):
                raise
            return json.loads(data, **hooks)

    patch.setattr(schema, "load_json", load)


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "abci_socket": _resynchronise,
    "payloads": _count_twice,
    "extensions": _propose_blindly,
    "receipts": _skip_blanks,
    "service_file": _open_doors,
    "rpc_replies": _believe_numbers,
    "answers": _keep_surrogates,
    "node_replies": _believe_one_node,
}


@pytest.mark.parametrize("name", TARGETS)
def test_each_fuzzer_finds_a_fault_that_was_put_in(
    name: str, started: Callable[[str], Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = started(name)
    PLANTED[name](monkeypatch)
    report = fuzz(target, seconds=LONGEST_SEARCH_S)
    assert report.crash is not None, f"{name} did not find it in {report.runs} runs"
    with pytest.raises(type(report.crash.error)):
        target.run(report.crash.data)  # made smaller, it shows the same
