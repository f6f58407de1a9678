"""The Kubernetes folders: valid against the schemas, and in tune with the server's settings."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from app.settings import PREFIX, Settings
from tests.docker.kustomize import Object, identity, ordered, render
from tests.docker.metrics import real, wrong

FOLDER = Path(__file__).parent.parent.parent / "docker" / "kubernetes"
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir())
# Kinds that are not Kubernetes' own; the schemas do not know them.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
VERSIONS = ("1.30", "1.34", kubernetes_validate.latest_version())


def mixed(tmp_path: Path, overlay: str, *components: str) -> Path:
    """An operator's own kustomization: an overlay of ours and some components."""
    relative = os.path.relpath(FOLDER, tmp_path)
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{relative}/overlays/{overlay}"],
        "components": [f"{relative}/components/{name}" for name in components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return tmp_path


def of(resources: list[Object], kind: str) -> Object:
    found = [resource for resource in resources if resource["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def container(resources: list[Object]) -> Object:
    containers = of(resources, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert len(containers) == 1
    found: Object = containers[0]
    return found


def environment(resources: list[Object]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(resources)["env"]}


def test_folders_are_those_of_the_documentation() -> None:
    assert COMPONENTS == [
        "hpa",
        "keda",
        "keys",
        "monitoring",
        "monitoring-keys",
        "store-s3",
        "store-volume",
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_everything_fits_the_schemas(overlay: str, version: str, tmp_path: Path) -> None:
    with_keys = ("monitoring", "store-s3", "keys", "monitoring-keys")
    for extra in [(), ("monitoring", "store-volume"), with_keys]:
        for resource in render(mixed(tmp_path, overlay, *extra)):
            if resource["kind"] not in FOREIGN:
                kubernetes_validate.validate(resource, version, strict=True)


def test_schemas_would_have_found_a_mistake() -> None:
    resource = of(render(FOLDER / "overlays" / "cpu"), "Deployment")
    resource["spec"]["template"]["spec"]["terminationGrace"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_pods_are_held_by_their_selectors(overlay: str) -> None:
    resources = render(FOLDER / "overlays" / overlay)
    labels = of(resources, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        of(resources, "Deployment")["spec"]["selector"]["matchLabels"],
        of(resources, "Service")["spec"]["selector"],
        of(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    port = {entry["name"] for entry in container(resources)["ports"]}
    assert {entry["targetPort"] for entry in of(resources, "Service")["spec"]["ports"]} <= port


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_settings_exist_and_grace_outlasts_the_longest_request(overlay: str) -> None:
    resources = render(FOLDER / "overlays" / overlay)
    ours = {k.removeprefix(PREFIX).lower(): v for k, v in environment(resources).items()}
    assert set(ours) <= set(Settings.model_fields)
    pod = of(resources, "Deployment")["spec"]["template"]["spec"]
    longest = float(ours["drain_grace_s"]) + float(ours["request_timeout_s"])
    assert pod["terminationGracePeriodSeconds"] > longest
    # Otherwise the service `ternaus` would set TERNAUS_PORT to an address, which is no port.
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_endpoints_are_gone_before_requests_are_refused(overlay: str) -> None:
    resources = render(FOLDER / "overlays" / overlay)
    probe = container(resources)["readinessProbe"]
    noticed = (probe["periodSeconds"] + 1) * probe["failureThreshold"]
    assert float(environment(resources)["TERNAUS_DRAIN_GRACE_S"]) > noticed
    assert container(resources)["livenessProbe"]["httpGet"]["path"] == "/health/live"
    for name in ("readinessProbe", "startupProbe"):
        assert container(resources)[name]["httpGet"]["path"] == "/health/ready"


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_pods_run_without_rights(overlay: str) -> None:
    resources = render(FOLDER / "overlays" / overlay)
    pod = of(resources, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    rights = container(resources)["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert "/var/cache/ternaus" in {m["mountPath"] for m in container(resources)["volumeMounts"]}


def test_each_replica_on_gpu_has_one() -> None:
    found = container(render(FOLDER / "overlays" / "gpu"))
    assert found["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert found["image"] == "ternausnet-serve:cuda"
    assert container(render(FOLDER / "overlays" / "cpu"))["image"] == "ternausnet-serve:cpu"


def test_autoscalers_go_by_the_predicted_wait(tmp_path: Path) -> None:
    scaler = of(render(FOLDER / "overlays" / "cpu"), "HorizontalPodAutoscaler")["spec"]
    name = scaler["metrics"][0]["pods"]["metric"]["name"]
    assert name in real()
    assert "wait" in name
    rules = yaml.safe_load((FOLDER / "components" / "hpa" / "adapter-rules.yaml").read_text())
    assert rules["rules"]["custom"][0]["seriesQuery"].startswith(name)
    keda = yaml.safe_load((FOLDER / "components" / "keda" / "scaled-object.yaml").read_text())
    trigger = keda["spec"]["triggers"][0]["metadata"]
    assert name in trigger["query"]
    assert not wrong(trigger["query"])
    # One autoscaler at a time.
    kinds = [r["kind"] for r in render(mixed(tmp_path, "cpu", "keda"))]
    assert "ScaledObject" in kinds
    assert "HorizontalPodAutoscaler" not in kinds
    assert keda["spec"]["minReplicaCount"] == scaler["minReplicas"] == 2
    assert keda["spec"]["maxReplicaCount"] == scaler["maxReplicas"]
    assert keda["spec"]["scaleTargetRef"]["name"] == scaler["scaleTargetRef"]["name"]


def test_alerts_are_those_of_prometheus() -> None:
    plain = yaml.safe_load((FOLDER.parent / "prometheus" / "alerts.yml").read_text())
    groups: list[dict[str, Any]] = plain["groups"]
    groups[0]["rules"] = [rule for rule in groups[0]["rules"] if rule["alert"] != "BalancerDown"]
    rule = yaml.safe_load((FOLDER / "components" / "monitoring" / "alerts.yaml").read_text())
    assert rule["spec"]["groups"] == groups


def test_monitor_scrapes_the_service(tmp_path: Path) -> None:
    resources = render(mixed(tmp_path, "cpu", "monitoring"))
    monitor, service = of(resources, "ServiceMonitor")["spec"], of(resources, "Service")
    labels = service["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["endpoints"][0]["port"] in {p["name"] for p in service["spec"]["ports"]}
    # The alerts ask for `job="ternaus"`.
    assert labels[monitor["jobLabel"]] == "ternaus"


def test_models_may_come_from_a_volume_or_an_object_store(tmp_path: Path) -> None:
    volume = render(mixed(tmp_path, "gpu", "store-volume"))
    mounts = {m["mountPath"]: m for m in container(volume)["volumeMounts"]}
    assert mounts["/models"]["readOnly"] is True
    assert "/var/cache/ternaus" in mounts
    claim = of(volume, "PersistentVolumeClaim")["metadata"]["name"]
    volumes = of(volume, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert claim in {v.get("persistentVolumeClaim", {}).get("claimName") for v in volumes}
    remote = render(mixed(tmp_path, "gpu", "store-s3"))
    assert environment(remote)["TERNAUS_MODEL_STORE"].startswith("s3://")
    assert of(remote, "NetworkPolicy")["spec"]["egress"]
    assert of(volume, "NetworkPolicy")["spec"]["egress"] == []


def test_keys_come_from_a_secret_that_the_pods_can_read(tmp_path: Path) -> None:
    resources = render(mixed(tmp_path, "cpu", "store-volume", "keys"))
    path = environment(resources)["TERNAUS_API_KEYS_FILE"]
    assert "api_keys_file" in Settings.model_fields
    [mount] = [m for m in container(resources)["volumeMounts"] if m["name"] == "keys"]
    assert mount["readOnly"] is True
    assert path.startswith(mount["mountPath"] + "/")
    pod = of(resources, "Deployment")["spec"]["template"]["spec"]
    [volume] = [v for v in pod["volumes"] if v["name"] == "keys"]
    assert path.endswith("/" + volume["secret"]["items"][0]["path"])
    # Owned by root; readable by the pod's group alone.
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_prometheus_sends_its_key(tmp_path: Path) -> None:
    plain = of(render(mixed(tmp_path, "cpu", "monitoring")), "ServiceMonitor")["spec"]
    resources = render(mixed(tmp_path, "cpu", "monitoring", "keys", "monitoring-keys"))
    monitor = of(resources, "ServiceMonitor")["spec"]
    authorization = monitor["endpoints"][0].pop("authorization")
    assert monitor == plain
    pod = of(resources, "Deployment")["spec"]["template"]["spec"]
    [volume] = [v for v in pod["volumes"] if v["name"] == "keys"]
    assert authorization["type"] == "Bearer"
    assert authorization["credentials"]["name"] == volume["secret"]["secretName"]


@pytest.mark.fleet
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_kubectl_makes_the_same_of_it(overlay: str, tmp_path: Path) -> None:
    assert shutil.which("kubectl"), "`kubectl` (1.21 or newer) is needed"
    with_keys = ("monitoring", "keys", "monitoring-keys")
    for extra in [(), ("monitoring", "store-volume"), ("keda", "store-s3"), with_keys]:
        folder = mixed(tmp_path, overlay, *extra)
        done = subprocess.run(
            ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        made = {identity(r): ordered(r) for r in yaml.safe_load_all(done.stdout)}
        assert made == {identity(r): ordered(r) for r in render(folder)}
