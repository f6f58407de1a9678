"""Prometheus with the deployed rules scrapes a real fleet; the dashboard and the alerts hold."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.docker.test_figures import RULES, panels
from tests.fleet.load import steady_load
from tests.fleet.processes import DOCKER, Fleet, Program, answers, fleet, free_ports, needed, until

pytestmark = pytest.mark.fleet

FOLDER = DOCKER / "prometheus"
# Panels about what did not happen here: nothing was refused, late, left or run again.
EMPTY = {"Refused at the door", "Deadlines missed, by stage", "Clients that left, by stage"}
EMPTY |= {"Pictures that gave no mask", "Batches run again in parts", "Our failures"}
EMPTY |= {"Connections cut off, by why", "Models loaded while serving"}


class Prometheus:
    """Prometheus with our configuration, its discovery by name replaced by fixed addresses."""

    def __init__(self, folder: Path, started: Fleet) -> None:
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FOLDER / "alerts.yml")]
        targets = {
            "ternaus": [replica.url for replica in started.replicas],
            "balancer": [started.balancer.figures],
        }
        for job in config["scrape_configs"]:
            del job["dns_sd_configs"]
            job["scrape_timeout"] = "1s"
            addresses = [url.removeprefix("http://") for url in targets[job["job_name"]]]
            job["static_configs"] = [{"targets": addresses}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.program = Program(
            [
                needed("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            folder / "prometheus.log",
        )

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(
            f"{self.url}/api/v1/{path}", params=parameters, timeout=10, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[Any]:
        """The samples of an expression of the dashboard, its variables filled in."""
        filled = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
        found: list[Any] = self.ask("query", query=filled)["result"]
        return found

    def alerts(self) -> dict[str, str]:
        return {a["labels"]["alertname"]: a["state"] for a in self.ask("alerts")["alerts"]}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Prometheus]]:
    folder = tmp_path_factory.mktemp("watched")
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(fleet(folder, 2, batch_s=0.05))
        prometheus = Prometheus(folder, started)
        stack.callback(prometheus.program.end)
        until(lambda: answers(f"{prometheus.url}/-/ready"), "Prometheus is ready")
        with steady_load(started.url, clients=3) as load:
            until(lambda: len(load.replies) >= 60, "60 replies")
            until(lambda: len(prometheus.query("ternaus_ready == 1")) == 2, "both are scraped")
            first = prometheus.query("sum(ternaus_requests_total)")[0]["value"][1]
            until(
                lambda: (
                    float(prometheus.query("sum(ternaus_requests_total)")[0]["value"][1])
                    > float(first) + 20
                ),
                "a later scrape",
            )
        assert not load.lost
        yield started, prometheus


def test_every_replica_is_scraped(watched: tuple[Fleet, Prometheus]) -> None:
    started, prometheus = watched
    targets = prometheus.ask("targets")["activeTargets"]
    assert {t["health"] for t in targets} == {"up"}, targets
    assert [t["labels"]["job"] for t in targets].count("ternaus") == len(started.replicas)
    assert [t["labels"]["job"] for t in targets].count("balancer") == 1


def test_dashboard_has_something_to_show(watched: tuple[Fleet, Prometheus]) -> None:
    _, prometheus = watched
    for title, expression in panels():
        found = prometheus.query(expression)
        assert found or title in EMPTY, f"`{title}` is empty: {expression}"


def test_alerts_are_silent_and_one_wakes_when_a_replica_is_gone(
    watched: tuple[Fleet, Prometheus],
) -> None:
    started, prometheus = watched
    (group,) = prometheus.ask("rules")["groups"]
    assert {rule["name"] for rule in group["rules"]} == {rule["alert"] for rule in RULES}
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert not prometheus.alerts()
    started.replicas[0].program.signal(signal.SIGKILL)
    until(lambda: prometheus.alerts().get("TernausReplicaDown") == "pending", "the alert pends")
    started.replicas[0].start()
    until(lambda: not prometheus.alerts(), "the alert is over")


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"),
     ("test", "rules", "alerts.test.yml")],
    ids=lambda arguments: " ".join(arguments),
)  # fmt: skip
def test_promtool_accepts_our_files(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [needed("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_can_read_every_query_of_the_dashboard(tmp_path: Path) -> None:
    filled = [expression.replace("$__rate_interval", "1m") for _, expression in panels()]
    rules = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(filled)]
    (tmp_path / "panels.yml").write_text(
        json.dumps({"groups": [{"name": "panels", "rules": rules}]})
    )
    done = subprocess.run(
        [needed("promtool"), "check", "rules", str(tmp_path / "panels.yml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
