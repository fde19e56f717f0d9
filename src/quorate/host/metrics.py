"""What one agent counts, in Prometheus's text format, as a file that is replaced every few seconds.

A file, not a port: a server in the agent's process is one more way in, every agent of a machine would need a port of
its own, and Prometheus cannot read a unix socket. Its node exporter reads such files (--collector.textfile.directory),
so does `cat`. Everything here follows from the agent's events: nothing is counted twice, and acts know nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quorate.durable import replace_file

__all__ = ["Metrics", "keep_writing"]

EVERY_S = 5.0
_log = logging.getLogger(__name__)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_Labels = tuple[tuple[str, str], ...]

_HELP: Mapping[str, tuple[str, str]] = {
    "quorate_rounds_total": ("counter", "Rounds that ended, by how."),
    "quorate_round_seconds_total": ("counter", "Time from the opening of a round to its end, as this agent saw it."),
    "quorate_payloads_total": ("counter", "Payloads that this agent handed in, by the way they went."),
    "quorate_act_seconds_total": ("counter", "Time that this agent's acts took."),
    "quorate_waits_total": ("counter", "Times that an act could not go on and was tried again."),
    "quorate_answers_total": ("counter", "Answers of model operators that were counted."),
    "quorate_refused_answers_total": ("counter", "Answers of model operators that were not counted."),
    "quorate_transactions_total": ("counter", "EVM transactions that this agent sent, or saw mined."),
    "quorate_gas_total": ("counter", "Gas of the transactions that this agent saw mined."),
    "quorate_offences_total": ("counter", "Offences of members that went on record, by kind."),
    "quorate_errors_total": ("counter", "Errors that a person should look at."),
    "quorate_height": ("gauge", "The block in which a round last ended."),
    "quorate_sequence": ("gauge", "The round since genesis that the quorum is in."),
    "quorate_period": ("gauge", "The period that the quorum is in."),
    "quorate_written_time_seconds": ("gauge", "When this file was written: an old one means a dead agent."),
    "process_cpu_seconds_total": ("counter", "Processor time of the agent, without its node."),
    "process_resident_memory_bytes": ("gauge", "Memory of the agent, without its node."),
}


class Metrics:
    """The counts of one agent."""

    def __init__(self, **labels: str) -> None:
        self._labels = tuple(sorted(labels.items()))
        self._values: dict[str, dict[_Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._timed = 0

    def count(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take one event of the agent; a kind that counts nothing changes nothing."""
        round_ = {"round": str(fields.get("round", ""))}
        if kind == "settled":
            self._add("quorate_rounds_total", round_ | {"event": str(fields["event"])})
            self._add("quorate_round_seconds_total", round_, (fields.get("ms") or 0) / 1000)
            self._set("quorate_height", fields["height"])
        elif kind == "round":
            self._set("quorate_sequence", fields["sequence"])
            self._set("quorate_period", fields["period"])
        elif kind == "payload":
            self._add("quorate_payloads_total", round_ | {"via": str(fields["via"])})
            if fields["sequence"] != self._timed:  # one act, though its payload may go both ways
                self._timed = fields["sequence"]
                self._add("quorate_act_seconds_total", round_, (fields.get("ms") or 0) / 1000)
        elif kind == "waiting" and fields.get("reason"):
            self._add("quorate_waits_total", {"round": str(fields.get("for", ""))})
        elif kind == "model":
            self._add("quorate_answers_total", {"operator": str(fields.get("operator", ""))})
        elif kind == "refused":
            self._add("quorate_refused_answers_total", {"operator": str(fields.get("operator", ""))})
        elif kind in ("sent", "mined"):
            self._add("quorate_transactions_total", {"what": kind})
            self._add("quorate_gas_total", {}, int(fields.get("gas", 0)))
        elif kind == "offence":
            self._add("quorate_offences_total", {"what": str(fields["what"])})
        elif kind == "error":
            self._add("quorate_errors_total", {})

    def render(self) -> str:
        """All of it, in the text format 0.0.4."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._set("process_cpu_seconds_total", used.ru_utime + used.ru_stime)
        self._set("process_resident_memory_bytes", int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE)
        self._set("quorate_written_time_seconds", time.time())
        lines = []
        for name, (kind, text) in _HELP.items():
            if name in self._values:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                lines += [
                    f"{name}{_braces(labels)} {value:.15g}" for labels, value in sorted(self._values[name].items())
                ]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Replace the file at `path`: a reader never sees half of one."""
        replace_file(path, self.render().encode(), is_synced=False)

    def _add(self, name: str, labels: Mapping[str, str], value: float = 1) -> None:
        self._values[name][self._all(labels)] += value

    def _set(self, name: str, value: float) -> None:
        self._values[name][self._labels] = value

    def _all(self, labels: Mapping[str, str]) -> _Labels:
        return (*self._labels, *sorted(labels.items()))


async def keep_writing(metrics: Metrics, path: Path) -> None:
    """Write now and every few seconds, until cancelled. A disk that refuses is told, and stops nothing else."""
    while True:
        try:
            metrics.write(path)
        except OSError as error:
            _log.warning("the metrics cannot be written to %s: %s", path, error)
        await asyncio.sleep(EVERY_S)


def _braces(labels: _Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
