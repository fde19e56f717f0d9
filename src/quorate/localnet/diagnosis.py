"""Why a service does not move, in plain words: what a snapshot of it means. Pure.

The order of the findings is the order in which they explain each other: too few agents explain every wait, a dead
chain explains an act that waits, and only what nothing else explains is said to be slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from quorate.localnet.snapshot import AgentView, Life, Part, Snapshot
from quorate.localnet.story import duration
from quorate.offences import PROVED

__all__ = ["Diagnosis", "Finding", "Missing", "diagnose", "plain_round"]

Weight = Literal["stops", "weakens", "says"]
"""`stops`: the service cannot go on until it is mended; `weakens`: it goes on; `says`: nothing is wrong."""

_SAFE_GAS = 300_000  # of one Safe transaction with a vote in it, generously
_SLOW_S = 10.0
_LONG_ANSWER_S = 20.0  # a small language model on two cores takes up to 15
_LONGEST_REASON = 600


@dataclass(frozen=True)
class Finding:
    """One thing that is the case: a name for programs, a sentence for people, and what they can do."""

    kind: str
    who: tuple[str, ...]
    weight: Weight
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Missing:
    """An agent whose payload of this round is in no block yet."""

    agent: str
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """What there is to say."""

    verdict: str
    """The answer, in one or two sentences."""
    is_well: bool
    """Whether nothing needs to be mended."""
    round: str
    sequence: int
    period: int
    since_s: float | None
    """How long the round has been open; None where nobody has told."""
    sent: tuple[str, ...]
    missing: tuple[Missing, ...]
    findings: tuple[Finding, ...]


def diagnose(snapshot: Snapshot) -> Diagnosis:
    """What `snapshot` means."""
    part = snapshot.part
    findings = [*_agents(snapshot), *_agreement(snapshot), *_chain(snapshot), *_operators(snapshot), *_gas(snapshot)]
    if part is not None and len(snapshot.answering) >= snapshot.quorum:
        findings += _acts(snapshot, part)
        findings += _rule(snapshot, part)
    if part is not None:
        findings += [*_upgrade(part), *_offences(snapshot, part)]
    since = None if part is None else _since(snapshot, part)
    return Diagnosis(
        verdict=_verdict(snapshot, findings, since),
        is_well=all(one.weight == "says" for one in findings),
        round="" if part is None else plain_round(part.round),
        sequence=0 if part is None else part.sequence,
        period=0 if part is None else part.period,
        since_s=since,
        sent=() if part is None else tuple(snapshot.name_of(address) for address in part.voted),
        missing=() if part is None else tuple(_missing(snapshot, part)),
        findings=tuple(findings),
    )


def plain_round(name: str) -> str:
    """The round as its function is called: `read_proposal` for ReadProposalRound."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removesuffix("Round")).lower()


_STATE = {"paused": "is paused (it got a STOP signal)", "gone": "does not run"}


def _agents(snapshot: Snapshot) -> Iterator[Finding]:
    """Who does not answer, and why."""
    up = len(snapshot.answering)
    if up < snapshot.quorum:
        absent = tuple(agent.name for agent in snapshot.members if agent.part is None)
        yield Finding(
            "no-quorum",
            absent,
            "stops",
            f"{up} of {len(snapshot.members)} agents answer; {snapshot.quorum} are needed",
            f"Bring {_list(absent[: snapshot.quorum - up])} back.",
        )
    for agent in snapshot.members:
        if agent.part is None:
            yield _absent(snapshot, agent)
        elif agent.is_catching_up:
            height = agent.part.height
            best = snapshot.part.height if snapshot.part else height
            yield Finding("catching-up", (agent.name,), "weakens", f"{agent.name} catches up: block {height} of {best}")
        elif agent.peers == () and len(snapshot.members) > 1:
            yield Finding(
                "no-peers",
                (agent.name,),
                "weakens",
                f"{agent.name} runs, but its node is connected with no other",
                "See whether its network lets it reach the others' nodes.",
            )


def _upgrade(part: Part) -> Iterator[Finding]:
    """Another version of the code is agreed on: agents that end there have done their work."""
    if part.next_height:
        yield Finding(
            "upgrade",
            (),
            "says",
            f"version {part.next_version} of the code is agreed from block {part.next_height} on",
            "Each agent ends before that block: start it again with that version (docs/upgrade.md); "
            "./quorate upgrade does so by itself.",
        )


def _offences(snapshot: Snapshot, part: Part) -> Iterator[Finding]:
    """What the agents have on record against each other: it explains no wait, but somebody should know."""
    for one in part.offences:
        name = snapshot.name_of(one.member)
        yield Finding(
            "offence",
            (name,),
            "says",
            f"{name}: {one.kind} in round {one.sequence}, on record since block {one.height}",
            f"The proof is {one.evidence}.abi in each agent's evidence folder." if one.kind in PROVED else "",
        )


def _absent(snapshot: Snapshot, agent: AgentView) -> Finding:
    log = f"./quorate logs {agent.name}"
    if agent.life != "running":
        words = f"; its last words: {agent.last_words}" if agent.last_words else ""
        fix = (
            "Let it go on: kill -CONT its process."
            if agent.life == "paused"
            else f"Its run starts it again; if it does not stay, {log} says why."
        )
        return Finding(
            f"agent-{agent.life}", (agent.name,), "weakens", f"{agent.name} {_STATE[agent.life]}{words}", fix
        )
    if agent.node_life != "running":
        text = f"{agent.name} runs, but its CometBFT node {_STATE[agent.node_life]}"
        return Finding(f"node-{agent.node_life}", (agent.name,), "weakens", text, f"See {log} --node.")
    said = f"; it says: {agent.told.error}" if agent.told.error else ""
    return Finding(
        "agent-silent", (agent.name,), "weakens", f"{agent.name} runs, but does not answer{said}", f"See {log}."
    )


def _agreement(snapshot: Snapshot) -> Iterator[Finding]:
    """Two app hashes at one height: the worst that can happen."""
    by_height: dict[int, dict[str, list[str]]] = {}
    for agent in snapshot.answering:
        if agent.part is not None:
            by_height.setdefault(agent.part.height, {}).setdefault(agent.part.app_hash, []).append(agent.name)
    for height, hashes in sorted(by_height.items()):
        if len(hashes) > 1:
            groups = " and ".join(f"{_list(names)} hold {app_hash[:12]}" for app_hash, names in sorted(hashes.items()))
            yield Finding(
                "diverged",
                tuple(name for names in hashes.values() for name in names),
                "stops",
                f"the agents hold different states at block {height}: {groups}",
                "Run one version of the service and of Quorate everywhere; ./quorate replay finds the difference.",
            )


def _chain(snapshot: Snapshot) -> Iterator[Finding]:
    chain = snapshot.chain
    if chain is None:
        return
    if chain.problem:
        text = f"the EVM chain at {chain.url} cannot be used: {chain.problem}"
        yield Finding(
            "chain-silent", (), "stops", text, "Start its node, or set evm.url in agent.json to one that runs."
        )


def _operators(snapshot: Snapshot) -> Iterator[Finding]:
    silent = [one for one in snapshot.operators if one.problem or one.life != "running"]
    weight: Weight = "stops" if len(silent) == len(snapshot.operators) else "weakens"
    for one in silent:
        what = one.problem if one.life == "running" else _operator_state(one.life, one.last_words)
        yield Finding(
            "operator-silent",
            (one.name,),
            weight,
            f"{one.name} at {one.url} gives no answers: {what}",
            f"See ./quorate logs {one.name}.",
        )


def _operator_state(life: Life, last_words: str) -> str:
    return f"it {_STATE[life]}" + (f"; its last words: {last_words}" if last_words else "")


def _gas(snapshot: Snapshot) -> Iterator[Finding]:
    chain = snapshot.chain
    if chain is None or chain.gas_price_wei is None:
        return
    needed = _SAFE_GAS * max(1, chain.gas_price_wei)
    known = [(agent, agent.balance_wei) for agent in snapshot.members if agent.balance_wei is not None]
    poor = [(agent, balance) for agent, balance in known if balance < needed]
    weight: Weight = "stops" if len(poor) == len(known) else "weakens"
    for agent, balance in poor:
        yield Finding(
            "no-gas",
            (agent.name,),
            weight,
            f"{agent.name} cannot pay for a transaction: it has {_coins(balance)}, and one costs about "
            f"{_coins(needed)}; when it is keeper, another has to send",
            f"Send some of the chain's coin to {agent.address}.",
        )


def _acts(snapshot: Snapshot, part: Part) -> Iterator[Finding]:
    """Why acts do not end: the same reason of several agents is one finding."""
    reasons: dict[str, list[str]] = {}
    hopes: dict[str, list[str]] = {}
    for agent in snapshot.answering:
        told = agent.told
        if agent.address in part.voted or told.sequence != part.sequence:
            continue
        if told.reason:
            reasons.setdefault(snapshot.name_all(told.reason)[:_LONGEST_REASON], []).append(agent.name)
        elif told.waiting_for:
            hopes.setdefault(told.waiting_for, []).append(agent.name)
    able = len(snapshot.answering) - sum(map(len, reasons.values()))
    for reason, who in reasons.items():
        weight: Weight = "weakens" if able >= snapshot.quorum else "stops"
        yield Finding("act-fails", tuple(who), weight, f"{_list(who)} cannot do {plain_round(part.round)}: {reason}")
    for hope, who in hopes.items():
        yield Finding("act-waits", tuple(who), "says", f"{_list(who)}: waiting for {hope}")
    yield from _asking(snapshot, part)
    for agent in snapshot.answering:
        if agent.told.error:
            yield Finding("agent-error", (agent.name,), "weakens", f"{agent.name} says: {agent.told.error}")


def _asking(snapshot: Snapshot, part: Part) -> Iterator[Finding]:
    """Which models have been silent for long: their operators may be well otherwise."""
    waiting: dict[tuple[str, str], list[AgentView]] = {}
    for agent in snapshot.answering:
        told = agent.told
        is_late = told.asking_t is not None and snapshot.t - told.asking_t > _LONG_ANSWER_S
        if told.asking and is_late and told.sequence == part.sequence and agent.address not in part.voted:
            waiting.setdefault((snapshot.name_of(told.asking), told.asking_model), []).append(agent)
    for (operator, model), agents in waiting.items():
        who = tuple(agent.name for agent in agents)
        longest = max(snapshot.t - agent.told.asking_t for agent in agents if agent.told.asking_t is not None)
        yield Finding(
            "model-silent",
            who,
            "weakens",
            f"{_list(who)}: no answer of {operator}'s model {model} for {duration(1000 * longest)}",
            "Nobody needs to do anything: when its time is over they ask the next operator.",
        )


def _rule(snapshot: Snapshot, part: Part) -> Iterator[Finding]:
    """A quorum has sent, and yet the round goes on: its rule wants somebody in particular."""
    away = [agent.name for agent in snapshot.members if agent.part is None and agent.address not in part.voted]
    if away and len(part.voted) >= snapshot.quorum:
        yield Finding(
            "rule-wants-more",
            tuple(away),
            "stops",
            f"{len(part.voted)} agents have sent, and {plain_round(part.round)} still waits for {_list(away)}: "
            "its rule wants all of them, or one of them in particular, or its time is not over",
            f"Bring {_list(away)} back, or wait for the round's deadline.",
        )


def _missing(snapshot: Snapshot, part: Part) -> Iterator[Missing]:
    for agent in snapshot.members:
        if agent.address not in part.voted:
            yield Missing(agent.name, _why_missing(snapshot, agent, part))


def _why_missing(snapshot: Snapshot, agent: AgentView, part: Part) -> str:
    told, now = agent.told, snapshot.t
    if agent.part is None:
        of_node = f"its node {_STATE[agent.node_life]}" if agent.node_life != "running" else "does not answer"
        return _STATE.get(agent.life, of_node)
    if agent.part.sequence < part.sequence:
        return f"is still in round {agent.part.sequence}"
    if told.sequence < part.sequence or (told.sequence == part.sequence and told.act_t is None):
        return "has not begun"
    if told.sequence > part.sequence or told.handed_in_t is not None:
        return "has sent; no block holds it yet"
    if told.reason:
        return f"tries again: {snapshot.name_all(told.reason)[:_LONGEST_REASON]}"
    if told.waiting_for:
        return f"waits for {told.waiting_for}"
    if told.asking and told.asking_t is not None:
        asked = f"{snapshot.name_of(told.asking)} ({told.asking_model})"
        return f"waits for an answer of {asked}, for {duration(1000 * (now - told.asking_t))}"
    works = "rests" if part.round == "PauseRound" else "is at work"
    return f"{works}, for {duration(1000 * (now - told.act_t))}" if told.act_t else works


def _since(snapshot: Snapshot, part: Part) -> float | None:
    opened = [a.told.opened_t for a in snapshot.members if a.told.sequence == part.sequence and a.told.opened_t]
    return max(0.0, snapshot.t - min(opened)) if opened else None


def _verdict(snapshot: Snapshot, findings: Sequence[Finding], since: float | None) -> str:
    part = snapshot.part
    if part is None:
        return f"No agent of {snapshot.service} answers. " + "; ".join(one.text for one in findings[1:]) + "."
    where = f"{plain_round(part.round)} (round {part.sequence}, period {part.period})"
    age = "" if since is None else f", open for {duration(1000 * since)}"
    stops = [one for one in findings if one.weight == "stops"]
    if any(one.kind == "no-quorum" for one in stops):
        causes = "; ".join(one.text for one in findings if one.kind.startswith(("agent-", "node-")))
        return f"Nothing can be decided in {where}: {stops[0].text}. {_capital(causes)}."
    if stops:
        return f"{_capital(where)}{age} is held up: {stops[0].text}."
    weak = [one for one in findings if one.weight == "weakens"]
    if weak:
        return f"The service goes on in {where}{age}, weakened: {'; '.join(one.text for one in weak)}."
    if part.round == "PauseRound":
        return f"All is well: the agents rest in {where}{age}."
    says = next((one.text for one in findings), "")
    slow = since is not None and since > _SLOW_S
    doing = says or ("its acts take long, and nothing is known to be wrong" if slow else "its acts are at work")
    return f"All is well: {where}{age}: {doing}."


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _coins(wei: int) -> str:
    return f"{wei / 10**18:.6g} coins" if wei else "nothing"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
