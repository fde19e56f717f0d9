"""What a running service on this machine looks like at one moment: asked of its nodes, its chain, its operators, and
read from what its agents have told. Changes nothing; `diagnosis.py` says what it means.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from quorate.abci import Genesis, NodeUnreachable
from quorate.errors import ConfigError
from quorate.events import Event, last_events
from quorate.fsm import quorum_of
from quorate.host.agent_file import AgentFile
from quorate.localnet.rpc import NodeRpc
from quorate.localnet.run_dir import RunDir

__all__ = [
    "AgentView",
    "ChainView",
    "Life",
    "OnRecord",
    "OperatorView",
    "Part",
    "Snapshot",
    "Told",
    "agent_files",
    "last_words",
    "look",
    "named",
    "told",
]

Life = Literal["running", "paused", "gone"]
"""Of a process: `paused` has got a STOP signal (or a debugger)."""

_TIMEOUT_S = 3.0
_TAIL_BYTES = 256 * 1024
_LAST_WORDS = 400
_NO_WAIT = {"waiting_for": "", "reason": "", "asking": ""}


@dataclass(frozen=True)
class OnRecord:
    """An offence that the agents agree on."""

    kind: str
    member: str
    sequence: int
    height: int
    evidence: str


@dataclass(frozen=True)
class Part:
    """Where an agent's application is, by its own word."""

    height: int
    app_hash: str
    sequence: int
    period: int
    round: str
    voted: tuple[str, ...]
    """The addresses whose payload of this round is in a block."""
    is_asleep: bool
    members: tuple[str, ...] = ()
    """Whose payloads count now."""
    offences: tuple[OnRecord, ...] = ()
    """The newest last."""
    next_version: int = 0
    """Of the service's code, that is agreed on; 0: none is."""
    next_height: int = 0
    """The first block of the next version."""


@dataclass(frozen=True)
class Told:
    """What one agent has told of the round that it is in, in its events."""

    sequence: int = 0
    round: str = ""
    opened_t: float | None = None
    act_t: float | None = None
    """When its act began; None if it did not."""
    handed_in_t: float | None = None
    waiting_for: str = ""
    """What its act waits for, in its own words."""
    reason: str = ""
    """What went wrong, if that is why it waits; it tries again."""
    asking: str = ""
    """The account of the operator that it asks now; empty where it asks none."""
    asking_model: str = ""
    asking_t: float | None = None
    error: str = ""
    """Its last error, whatever the round."""
    settled_t: float | None = None
    """When it last saw a round end."""


@dataclass(frozen=True)
class AgentView:
    """One agent and its validator."""

    name: str
    address: str
    life: Life
    node_life: Life
    part: Part | None
    """None where its application gives no answer."""
    peers: tuple[str, ...] | None
    """The agents that its node is connected with, by name; None where the node gives no answer."""
    is_catching_up: bool
    told: Told
    balance_wei: int | None
    """On the EVM chain; None where there is none, or it gives no answer."""
    last_words: str = ""
    """Of one that is gone: the end of its log."""
    pid: int | None = None
    """Of its process, which its node's lies below; None where it is gone."""


@dataclass(frozen=True)
class ChainView:
    """The EVM chain that the agents act on."""

    url: str
    problem: str
    """Why it cannot be used; empty where it answers."""
    block: int | None
    gas_price_wei: int | None


@dataclass(frozen=True)
class OperatorView:
    """An operator of models."""

    name: str
    url: str
    life: Life
    problem: str
    """Why it gives no answers; empty where it is well."""
    last_words: str = ""
    account: str = ""
    """Its address, as it has registered; empty before."""


@dataclass(frozen=True)
class Snapshot:
    """A running service at one moment."""

    run: str
    service: str
    chain_id: str
    t: float
    agents: tuple[AgentView, ...]
    chain: ChainView | None
    operators: tuple[OperatorView, ...]

    @property
    def quorum(self) -> int:
        """How many agents are needed: of those that are members now, where anybody says who that is."""
        return quorum_of(len(self.part.members if self.part and self.part.members else self.agents))

    @property
    def members(self) -> tuple[AgentView, ...]:
        """The agents that are members now (all, where nobody says who that is): the others are not waited for."""
        known = self.part.members if self.part else ()
        return tuple(agent for agent in self.agents if not known or agent.address in known)

    @property
    def answering(self) -> tuple[AgentView, ...]:
        """The members whose application answers."""
        return tuple(agent for agent in self.members if agent.part is not None)

    @property
    def part(self) -> Part | None:
        """Where the service is: the word of the agent that is furthest."""
        parts = [agent.part for agent in self.agents if agent.part is not None]
        return max(parts, key=lambda part: part.height, default=None)

    def name_of(self, address: str) -> str:
        """The name of the agent or operator with this address."""
        known = [(agent.address, agent.name) for agent in self.agents]
        known += [(one.account, one.name) for one in self.operators]
        return next((name for its, name in known if its.lower() == address.lower()), address)

    def name_all(self, text: str) -> str:
        """`text` with every agent's and operator's name in the place of its address."""
        for agent in self.agents:
            text = text.replace(agent.address, agent.name)
        for operator in self.operators:
            text = text.replace(operator.account or operator.name, operator.name)
        return text


async def look(run: RunDir) -> Snapshot:
    """Ask all of `run` at once; takes at most a few seconds, also where nobody answers."""
    files = agent_files(run)
    genesis = Genesis.load(files[0].comet_home)
    names = {file.me: file.name for file in files}
    nodes = {member.node_id: names.get(member.address, member.address) for member in genesis.members}
    lives = _Lives.now()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT_S)) as session:
        chain, agents, operators = await asyncio.gather(
            _chain(session, files),
            asyncio.gather(*(_agent(session, run, file, nodes, lives) for file in files)),
            asyncio.gather(*(_operator(session, run, file, lives) for file in _operator_files(run))),
        )
    service = Path(files[0].service).name
    return Snapshot(run.name, service, files[0].chain_id, time.time(), tuple(agents), chain, tuple(operators))


def agent_files(run: RunDir) -> list[AgentFile]:
    """What each agent of a run was started with; `ConfigError` where there is none yet."""
    homes = sorted(run.scratch.glob("a*/agent.json"), key=lambda path: int(path.parent.name[1:]))
    if not homes:
        raise ConfigError(f"the run {run.name} has no agents yet", fix="Ask again in some seconds.")
    return [AgentFile.load(path.parent) for path in homes]


def named(files: Sequence[AgentFile], names: Sequence[str]) -> list[AgentFile]:
    """The agents with these names, each once; all, if none is named. `ConfigError` where there is none of a name."""
    known = {file.name: file for file in files}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no agent of this run is named {unknown[0]}", fix=f"There are {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys(names)] or list(files)


def _operator_files(run: RunDir) -> list[dict[str, Any]]:
    files = sorted(run.scratch.glob("operator-*/operator.json"))
    return [{**json.loads(file.read_text()), "file": str(file)} for file in files]


async def _agent(
    session: aiohttp.ClientSession, run: RunDir, file: AgentFile, nodes: Mapping[str, str], lives: _Lives
) -> AgentView:
    life, node_life = lives.of(str(file.home)), lives.of(str(file.comet_home))
    part, peers, is_catching_up = await _node(file, nodes)
    return AgentView(
        name=file.name,
        address=file.me,
        life=life,
        node_life=node_life,
        part=part,
        peers=peers,
        is_catching_up=is_catching_up,
        told=told(last_events(file.events, _TAIL_BYTES)),
        balance_wei=await _balance(session, file),
        last_words=last_words(run.logs / f"{file.name}.log") if life == "gone" else "",
        pid=lives.pid(str(file.home)),
    )


async def _node(file: AgentFile, nodes: Mapping[str, str]) -> tuple[Part | None, tuple[str, ...] | None, bool]:
    async with NodeRpc(file.socket_dir / "rpc.sock", _TIMEOUT_S) as node:
        said, connected, sync = await asyncio.gather(
            node.application(), node.ask("net_info"), node.ask("status"), return_exceptions=True
        )
    for answer in (said, connected, sync):
        if isinstance(answer, BaseException) and not isinstance(answer, NodeUnreachable):
            raise answer
    part = None if isinstance(said, BaseException) else _part(said)
    peers = None
    if not isinstance(connected, BaseException):
        ids = [peer["node_info"]["id"] for peer in connected["peers"]]
        peers = tuple(sorted(nodes.get(one, one) for one in ids))
    is_catching_up = not isinstance(sync, BaseException) and bool(sync["sync_info"]["catching_up"])
    return part, peers, is_catching_up


def _part(said: Mapping[str, Any]) -> Part:
    due = said["upgrade"]["due"] or {"target": {"version": 0}, "height": 0}
    return Part(
        height=int(said["height"]),
        app_hash=str(said["app_hash"]),
        sequence=int(said["sequence"]),
        period=int(said["period"]),
        round=str(said["round"]),
        voted=tuple(said["voted"]),
        is_asleep=bool(said["asleep"]),
        members=tuple(said.get("members", ())),
        offences=tuple(
            OnRecord(one["kind"], one["member"], one["sequence"], one["height"], one["evidence"])
            for one in said["offences"]
        ),
        next_version=int(due["target"]["version"]),
        next_height=int(due["height"]),
    )


def told(events: Iterable[Event]) -> Told:
    """What these events of one agent say of its latest round; a round's part before it is of no interest."""
    so_far: dict[str, Any] = {}
    error, settled_t = "", None
    for event in events:
        sequence = int(event.get("sequence", so_far.get("sequence", 0)))
        if event.kind in ("round", "act", "payload") and sequence > so_far.get("sequence", 0):
            so_far = {"sequence": sequence, "round": str(event.get("round"))}
        if event.kind == "ready":  # a new life of the process: what its acts were doing is gone
            so_far, error = {}, ""
        elif event.kind == "settled":
            settled_t = event.t
        elif event.kind == "error":
            error = str(event.get("message"))
        elif event.kind == "waiting":
            so_far |= {**_NO_WAIT, "waiting_for": str(event.get("for")), "reason": str(event.get("reason"))}
        elif event.kind == "asking":
            asked = {"asking": str(event.get("operator")), "asking_model": str(event.get("model")), "asking_t": event.t}
            so_far |= _NO_WAIT | asked
        elif sequence == so_far.get("sequence") and event.kind == "round":
            so_far["opened_t"] = event.t
        elif sequence == so_far.get("sequence") and event.kind == "act":
            so_far |= {"act_t": event.t, **_NO_WAIT}
        elif sequence == so_far.get("sequence") and event.kind == "payload":
            so_far |= {"handed_in_t": event.t, **_NO_WAIT}
    return Told(**so_far, error=error, settled_t=settled_t)


async def _chain(session: aiohttp.ClientSession, files: Sequence[AgentFile]) -> ChainView | None:
    evm = files[0].evm
    if evm is None:
        return None
    try:
        found, block, price = await asyncio.gather(
            *(_ask(session, evm.url, method) for method in ("eth_chainId", "eth_blockNumber", "eth_gasPrice"))
        )
    except _Silent as error:
        return ChainView(evm.url, str(error), None, None)
    is_other = int(found, 16) != evm.chain_id
    problem = f"it is chain {int(found, 16)}; the agents expect {evm.chain_id}" if is_other else ""
    return ChainView(evm.url, problem, int(block, 16), int(price, 16))


async def _balance(session: aiohttp.ClientSession, file: AgentFile) -> int | None:
    if file.evm is None:
        return None
    try:
        return int(await _ask(session, file.evm.url, "eth_getBalance", file.me, "latest"), 16)
    except _Silent:
        return None


class _Silent(Exception):
    """No usable answer came; its text says why."""


async def _ask(session: aiohttp.ClientSession, url: str, method: str, *params: Any) -> str:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
    try:
        async with session.post(url, json=request) as response:
            answer = await response.json(content_type=None)
        return str(answer["result"])
    except TimeoutError:
        raise _Silent(f"no answer in {_TIMEOUT_S:.0f} s") from None
    except aiohttp.ClientConnectionError:
        raise _Silent("nothing listens there") from None
    except (aiohttp.ClientError, ValueError, KeyError, TypeError, OSError) as error:
        raise _Silent(f"no answer that can be read: {error!r}") from error


async def _operator(
    session: aiohttp.ClientSession, run: RunDir, config: Mapping[str, Any], lives: _Lives
) -> OperatorView:
    name, url = str(config["name"]), f"http://{config['host']}:{config['port']}"
    life = lives.of(str(config["file"]))
    words = last_words(run.logs / f"{name}.log") if life == "gone" else ""
    registered = [
        event for event in last_events(run.events / f"{name}.jsonl", _TAIL_BYTES) if event.kind == "registered"
    ]
    account = str(registered[-1].get("operator")) if registered else ""
    return OperatorView(name, url, life, await _operator_problem(session, url), words, account)


async def _operator_problem(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(f"{url}/health") as response:
            about = await response.json(content_type=None)
            if response.status == 200:
                return ""
            silent = sorted(name for name, is_up in about["models"].items() if not is_up)
            return f"its model server does not answer for {', '.join(silent)}"
    except TimeoutError:
        return f"no answer in {_TIMEOUT_S:.0f} s"
    except aiohttp.ClientConnectionError:
        return "nothing listens there"
    except (aiohttp.ClientError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no answer that can be read: {error!r}"


def last_words(log: Path) -> str:
    """Why the process that wrote `log` has ended, if it said so: its last error, else its last line."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in lines[-40:] if line.startswith("error:")]
    last = (errors or lines or [""])[-1]
    try:
        return str(json.loads(last)["message"])[:_LAST_WORDS]
    except (ValueError, KeyError, TypeError):  # no record of ours: a traceback's end, or our last sentence
        return last[:_LAST_WORDS]


@dataclass(frozen=True)
class _Lives:
    """The processes of this machine by the paths among their arguments."""

    found: Mapping[str, tuple[int, str]]
    """Process id and state."""

    @staticmethod
    def now() -> _Lives:
        found: dict[str, tuple[int, str]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it has ended meanwhile
                continue
            if state not in "ZX":
                found.update({one: (int(folder.name), state) for one in arguments[1:] if one.startswith("/")})
        return _Lives(found)

    def of(self, path: str) -> Life:
        """The life of the process that was started with `path` among its arguments."""
        state = self.found.get(path, (0, ""))[1]
        return "paused" if state in ("T", "t") else "running" if state else "gone"

    def pid(self, path: str) -> int | None:
        """Its id."""
        return self.found[path][0] if path in self.found else None
