"""Dashboards, alerts and autoscalers ask for metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docker.metrics import real, wrong

DOCKER = Path(__file__).parent.parent.parent / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "ternaus.json"
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"]
RULES = [rule for group in ALERTS for rule in group["rules"]]


def panels() -> Iterator[tuple[str, str]]:
    """Title and expression of every query of the dashboard."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("title", "expression"), list(panels()))
def test_dashboard_asks_for_what_there_is(title: str, expression: str) -> None:
    assert not wrong(expression), title
    assert '{instance=~"$instance"' in expression, "the choice of replicas is not applied"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alert_asks_for_what_there_is(rule: dict[str, object]) -> None:
    assert not wrong(str(rule["expr"]))
    assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    annotations = rule["annotations"]
    assert isinstance(annotations, dict)
    assert annotations["summary"]


def test_each_alert_has_a_test_of_its_own() -> None:
    tested = (DOCKER / "prometheus" / "alerts.test.yml").read_text()
    names = set(re.findall(r"alertname: (\w+)", tested))
    assert names == {rule["alert"] for rule in RULES}
    assert not [w for line in re.findall(r"series: (ternaus_.*)", tested) for w in wrong(line)]


def test_dashboard_shows_every_metric() -> None:
    shown = " ".join(expression for _, expression in panels())
    families = {re.sub(r"_(total|sum|count|bucket)$", "", name) for name in real()}
    assert not [name for name in families if name not in shown]


def test_dashboard_is_sound() -> None:
    board = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"`{panel['title']}` lies on another panel"
        taken |= cells


def test_provisioning_finds_its_files() -> None:
    folder = DOCKER / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())
    prometheus = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    entry = source["datasources"][0]
    assert entry["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    variable = json.loads(DASHBOARD.read_text())["templating"]["list"][0]
    assert variable["current"]["value"] == entry["uid"]


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("ternaus_nothing", "no metric `ternaus_nothing`"),
        ('sum(rate(ternaus_requests_total{colour="red"}[5m]))', "has no label `colour`"),
        ("sum by (colour) (ternaus_ready)", "no label `colour` to group by"),
        ("rate(ternaus_request_duration_seconds[5m])", "no metric"),
    ],
)
def test_check_finds_what_does_not_exist(expression: str, words: str) -> None:
    assert any(words in line for line in wrong(expression))
