"""`graph SERVICE`: every round and every edge of the table is in the diagram, and the same service gives the same."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from quorate.cli._drawing import Diagram, mermaid, svg
from quorate.cli.graph import graph
from quorate.loader import load_service
from tests.unit.fsm.test_interrupts import SERVICE as halting

SERVICES = Path(__file__).parents[2] / "services"
NAMES = ["hello_world", "delegate"]


@pytest.mark.parametrize("name", NAMES)
def test_mermaid_has_every_edge_of_the_table_once(name: str) -> None:
    service = load_service(SERVICES / name)
    lines = re.findall(r"^    (\w+) --> (\w+): (.+)$", mermaid(Diagram.of(service)), re.MULTILINE)
    drawn = [(source, event, target) for source, target, label in lines for event in label.split(", ")]
    expected = [
        (name.act.__name__, event, target.act.__name__)
        for (source, event), target in service.table.items()
        for name in [service.rounds[source]]
    ]
    assert sorted(drawn) == sorted(expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_svg_is_well_formed_names_every_round_and_lets_no_box_touch_another(name: str) -> None:
    service = load_service(SERVICES / name)
    root = ElementTree.fromstring(svg(Diagram.of(service)))  # noqa: S314  (we have just made it)
    space = "{http://www.w3.org/2000/svg}"
    texts = [one.text for one in root.iter(f"{space}text")]
    assert {one.act.__name__ for one in service.rounds.values()} <= set(texts)
    boxes = [tuple(float(one.attrib[k]) for k in ("x", "y", "width", "height")) for one in root.iter(f"{space}rect")]
    assert len(boxes) == len(service.rounds)
    for a in boxes:
        assert a[0] + a[2] <= float(root.attrib["width"])
        assert a[1] + a[3] <= float(root.attrib["height"])
        for b in boxes:
            assert a is b or a[0] + a[2] < b[0] or b[0] + b[2] < a[0] or a[1] + a[3] < b[1] or b[1] + b[3] < a[1]
    assert len(list(root.iter(f"{space}path"))) == len(Diagram.of(service).edges) + 1, "one a edge, and the arrow's end"


def test_the_same_service_gives_the_same_bytes_in_either_format(tmp_path: Path) -> None:
    for form in ("mermaid", "svg"):
        first, second = (
            CliRunner().invoke(graph, [str(SERVICES / "hello_world"), "--format", form], catch_exceptions=False)
            for _ in range(2)
        )
        assert first.output == second.output
        target = tmp_path / form
        CliRunner().invoke(graph, [str(SERVICES / "hello_world"), "--format", form, "-o", str(target)])
        assert target.read_text() == first.output


def test_interrupts_and_their_way_back_are_drawn() -> None:
    diagram = Diagram.of(halting)
    assert "look --> halted: HALT" in mermaid(diagram)
    assert "halted --> interrupted: DONE" in mermaid(diagram)
    ElementTree.fromstring(svg(diagram))  # noqa: S314  (we have just made it)
