"""The compose files: every service, file, port and setting that they name is there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import PREFIX, Settings
from tests.fleet.processes import needed

DOCKER = Path(__file__).parent.parent.parent / "docker"
PLAIN = yaml.safe_load((DOCKER / "compose.yaml").read_text())
KEYS = yaml.safe_load((DOCKER / "compose.keys.yaml").read_text())
GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
SERVICES: dict[str, Any] = PLAIN["services"]


def test_replicas_stand_behind_the_balancer() -> None:
    ternaus = SERVICES["ternaus"]
    assert ternaus["deploy"]["replicas"] >= 2
    assert "ports" not in ternaus, "replicas cannot share a port of the machine"
    servers = (DOCKER / "haproxy" / "replicas-compose.cfg").read_text()
    assert " ternaus:8000 " in servers
    slots = re.search(r"server-template replica 1-(\d+)", servers)
    assert slots is not None
    assert int(slots[1]) >= 16
    files = [word for word in SERVICES["balancer"]["command"] if word.endswith(".cfg")]
    assert [Path(file).name for file in files] == ["haproxy.cfg", "replicas-compose.cfg"]


def test_settings_exist_and_grace_outlasts_the_longest_request() -> None:
    for services in (SERVICES, GPU["services"], KEYS["services"]):
        names = services["ternaus"]["environment"]
        assert {n.removeprefix(PREFIX).lower() for n in names} <= set(Settings.model_fields)
    ours = SERVICES["ternaus"]["environment"]
    drain, longest = (float(ours[PREFIX + n]) for n in ("DRAIN_GRACE_S", "REQUEST_TIMEOUT_S"))
    assert float(SERVICES["ternaus"]["stop_grace_period"].removesuffix("s")) > drain + longest
    config = (DOCKER / "haproxy" / "haproxy.cfg").read_text()
    reply = re.search(r'timeout server "\$\{REPLY_TIMEOUT-(\d+)s\}"', config)
    assert reply is not None
    assert float(reply[1]) > longest, "a late answer must be the replica's own"


def test_balancer_notices_a_leaving_replica_in_time() -> None:
    config = (DOCKER / "haproxy" / "haproxy.cfg").read_text()
    check = re.search(r"check inter (\d+)s fastinter (\d+)ms .* fall (\d+)", config)
    assert check is not None
    notices = float(check[1]) + float(check[2]) / 1000 * (int(check[3]) - 1)
    assert notices < float(SERVICES["ternaus"]["environment"][f"{PREFIX}DRAIN_GRACE_S"]) / 2
    assert "uri /health/ready" in config
    assert "balance leastconn" in config


def test_only_pictures_are_open_to_others() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == ["8000:8000"]


def test_prometheus_finds_every_service() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert jobs["ternaus"]["names"] == ["ternaus"]
    assert jobs["ternaus"]["port"] == Settings.model_fields["port"].default
    for job in jobs.values():
        assert set(job["names"]) <= set(SERVICES)
    assert f":{jobs['balancer']['port']}}}" in (DOCKER / "haproxy" / "haproxy.cfg").read_text()
    source = (DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert "http://prometheus:9090" in source


def test_prometheus_with_a_key_is_the_same_otherwise() -> None:
    plain, keyed = (
        yaml.safe_load((DOCKER / "prometheus" / name).read_text())
        for name in ("prometheus.yml", "prometheus.keys.yml")
    )
    authorization = keyed["scrape_configs"][0].pop("authorization")
    assert keyed == plain
    over = KEYS["services"]["prometheus"]
    assert authorization["credentials_file"] == f"/run/secrets/{over['secrets'][0]}"
    first, *rest = over["command"]
    assert first == "--config.file=/etc/prometheus/prometheus.keys.yml"
    assert rest == SERVICES["prometheus"]["command"][1:]


def test_keys_are_where_the_server_looks_for_them() -> None:
    over = KEYS["services"]["ternaus"]
    assert over["environment"]["TERNAUS_API_KEYS_FILE"] == f"/run/secrets/{over['secrets'][0]}"
    named = {name for service in KEYS["services"].values() for name in service["secrets"]}
    assert named == set(KEYS["secrets"])


def test_mounted_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source[0] == "." else source in PLAIN["volumes"]


def test_images_are_pinned_to_a_release() -> None:
    for name, service in SERVICES.items():
        if name != "ternaus":
            assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]


def test_containers_run_without_rights() -> None:
    for name, service in SERVICES.items():
        assert "no-new-privileges:true" in service["security_opt"], name
    assert SERVICES["ternaus"]["read_only"] is True
    assert SERVICES["ternaus"]["cap_drop"] == ["ALL"]


@pytest.mark.fleet
@pytest.mark.parametrize(
    "over",
    [(), ("compose.gpu.yaml",), ("compose.keys.yaml",), ("compose.gpu.yaml", "compose.keys.yaml")],
)
def test_compose_reads_them(over: tuple[str, ...]) -> None:
    files = [word for name in ("compose.yaml", *over) for word in ("-f", str(DOCKER / name))]
    done = subprocess.run(
        [needed("docker-compose"), *files, "config", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ternaus = json.loads(done.stdout)["services"]["ternaus"]
    gpu = "compose.gpu.yaml" in over
    assert ternaus["build"]["target"] == ("cuda" if gpu else "cpu")
    assert ternaus["deploy"]["replicas"] == 2
    devices = ternaus["deploy"].get("resources", {}).get("reservations", {}).get("devices", [])
    assert [device["capabilities"] for device in devices] == ([["gpu"]] if gpu else [])
