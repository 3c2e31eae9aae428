"""deploy/kubernetes: valid by Kubernetes' own schemas, closed, and true of the image, its settings and its figures."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import settings
from deploy.__main__ import refuse
from models import catalog, plan
from serving.routes import ROUTES
from tests.conftest import ROOT, Server

Manifest = dict[str, Any]

FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.30", kubernetes_validate.latest_version())  # the first in which preStop can sleep
OTHERS = {"PodMonitor", "ScaledObject"}  # of operators, which Kubernetes' schemas do not know
GIB = 1 << 30


def read(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text()))


MANIFESTS = {each["kind"]: each for path in sorted(FOLDER.glob("*.yaml")) for each in read(path)}
DEPLOYMENT, JOB = MANIFESTS["Deployment"], MANIFESTS["Job"]
PODS = {each["kind"]: each["spec"]["template"] for each in (DEPLOYMENT, JOB)}
SERVING, IMPORT = (PODS[kind]["spec"]["containers"][0] for kind in ("Deployment", "Job"))


def literal(container: Manifest) -> dict[str, str]:
    """The variables whose values are written down."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def found(node: Any, key: str) -> Iterator[Any]:
    """All that stands under `key`, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from found(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from found(value, key)


def amount(text: str) -> int:
    """Bytes."""
    assert text.endswith("Gi"), text
    return int(text.removesuffix("Gi")) * GIB


# ---- valid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", sorted(MANIFESTS.keys() - OTHERS))
def test_a_manifest_is_what_kubernetes_takes(kind: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


def test_the_validator_sees_what_is_wrong() -> None:
    wrong = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_no_kind_is_there_twice_and_no_secret_at_all() -> None:
    kinds = [each["kind"] for path in FOLDER.glob("*.yaml") for each in read(path)]
    assert len(kinds) == len(MANIFESTS)
    assert MANIFESTS.keys() >= OTHERS and "Secret" not in kinds


# ---- one with another ----------------------------------------------------------------------------------------------


def test_all_that_selects_finds_the_replicas_and_not_the_import() -> None:
    selected = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        MANIFESTS["Service"]["spec"]["selector"],
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        MANIFESTS["PodMonitor"]["spec"]["selector"]["matchLabels"],
    ]
    labels, others = (PODS[kind]["metadata"]["labels"] for kind in ("Deployment", "Job"))
    assert all(each and each.items() <= labels.items() for each in selected)
    assert not any(each.items() <= others.items() for each in selected)
    assert MANIFESTS["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert "replicas" not in DEPLOYMENT["spec"]  # else each `kubectl apply` would undo what KEDA has done


def test_volumes_and_ports_that_are_named_are_there() -> None:
    claim = MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    for pod in PODS.values():
        (container,) = pod["spec"]["containers"]
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
        assert list(found(pod, "claimName")) == [claim]
    (port,) = SERVING["ports"]
    named = [
        *(SERVING[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")),
        MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"],
        MANIFESTS["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"],
        MANIFESTS["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"],
    ]
    assert set(named) == {port["name"]}


def test_each_secret_that_is_wanted_stands_in_the_command_that_makes_them() -> None:
    """Those that may be left out apart."""
    made = re.search(
        r"kubectl create secret generic (\S+) (.*(?:\n#.*--from.*)*)", (FOLDER / "serving.yaml").read_text()
    )
    assert made
    wanted = [each for whole in MANIFESTS.values() for each in found(whole, "secretKeyRef")]
    wanted.append(MANIFESTS["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["authorization"]["credentials"])
    assert {each["name"] for each in wanted} == {made[1]}
    needed = {each["key"] for each in wanted if not each.get("optional")}
    assert needed == set(re.findall(r"--from-literal=([a-z-]+)=", made[2]))


# ---- closed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_may_do_nothing_but_its_work(kind: str) -> None:
    pod = PODS[kind]["spec"]
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1034, "runAsGroup": 1034}.items()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("sizeLimit" in each["emptyDir"] for each in pod["volumes"] if "emptyDir" in each)
    assert container["resources"]["limits"]["memory"]


def test_who_serves_calls_nobody_and_cannot_change_the_weights() -> None:
    policy = MANIFESTS["NetworkPolicy"]["spec"]
    assert (set(policy["policyTypes"]), policy["egress"]) == ({"Ingress", "Egress"}, [])
    mounts = {each["mountPath"]: each for each in SERVING["volumeMounts"]}
    assert mounts["/runpod-volume/models"]["readOnly"] is True
    # What else it writes there, its jobs, are its own.
    volumes = {each["name"]: each for each in PODS["Deployment"]["spec"]["volumes"]}
    assert "emptyDir" in volumes[mounts["/runpod-volume"]["name"]]


# ---- true of the code ----------------------------------------------------------------------------------------------


def store_path() -> str:
    """Where the models are in the image, which has a home of its own."""
    text = (FOLDER.parent / "Containerfile").read_text()
    home = re.search(r"BENTOML_HOME=(\S+)\nEXPOSE", text)
    linked = re.search(r"ln -s (\S+) (\S+)/models;", text)
    assert home and linked and linked[2] == home[1]
    return linked[1]


def test_variables_are_known_and_taken() -> None:
    known = {
        each.metadata["name"]
        for form in (settings.Settings, settings.Container)
        for each in form.__dataclass_fields__.values()
    }
    for container in (SERVING, IMPORT):
        assert {each["name"] for each in container["env"]} <= known | {"HF_HOME", "HF_HUB_OFFLINE"}
        refuse(literal(container))
    environ = literal(SERVING)
    read, container = settings.read(environ), settings.read(environ, settings.Container)
    assert (container.mode, container.port) == ("http", SERVING["ports"][0]["containerPort"])
    assert read.model in catalog.ROWS
    assert store_path() in {each["mountPath"] for each in SERVING["volumeMounts"]}


def test_what_is_under_way_may_end() -> None:
    """Longest prompts included, and the moments in which balancers still send it some."""
    grace = settings.read(literal(SERVING), settings.Container).grace
    sleep: int = SERVING["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace * 1000 >= settings.Settings().deadline_ms
    assert PODS["Deployment"]["spec"]["terminationGracePeriodSeconds"] >= sleep + grace + 10


def test_what_is_served_is_imported_and_finds_room() -> None:
    python, flag, module, name = IMPORT["command"]
    assert (python, flag, module) == ("python", "-m", "scripts.import_model")
    assert (ROOT / "scripts" / "import_model.py").exists()
    assert name == literal(SERVING)["ZOPILOT_MODEL"]
    planned = plan.of_row(catalog.IMPORTS[name])
    volume = MANIFESTS["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]
    assert amount(volume) > 2 * planned.weights  # the next one beside it
    cache = {each["name"]: each for each in PODS["Job"]["spec"]["volumes"]}["cache"]["emptyDir"]["sizeLimit"]
    assert planned.parameters * 2 < amount(cache) < amount(IMPORT["resources"]["requests"]["ephemeral-storage"])
    assert literal(IMPORT)["HF_HUB_OFFLINE"] == "0"  # the image says 1
    homes = {each["mountPath"] for each in IMPORT["volumeMounts"]}
    # A store that is a mount point has nothing beside it to rename an import from.
    assert {str(Path(store_path()).parent), literal(IMPORT)["HF_HOME"]} <= homes
    assert store_path() not in homes


def test_probes_and_figures_are_asked_of_routes_that_are_there(tiny_server: Server) -> None:
    paths = [SERVING[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    paths += [each["path"] for each in MANIFESTS["PodMonitor"]["spec"]["podMetricsEndpoints"]]
    for path in paths:
        assert ROUTES[path].method == "GET"
        assert httpx.get(tiny_server.url + path, timeout=30).status_code == 200


def test_it_scales_on_figures_that_the_service_has(tiny_server: Server) -> None:
    """Each query is a sum over one gauge, by labels that it has; `container` is Prometheus' own."""
    told = text_string_to_metric_families(httpx.get(f"{tiny_server.url}/metrics", timeout=30).text)
    samples = [(family.type, sample.name, sample.labels) for family in told for sample in family.samples]
    names = []
    for trigger in MANIFESTS["ScaledObject"]["spec"]["triggers"]:
        assert trigger["type"] == "prometheus"
        query = re.fullmatch(r"sum\((\w+)\{(.*)\}\)", trigger["metadata"]["query"])
        assert query
        labels = dict(re.findall(r'(\w+)="([^"]*)"', query[2]))
        assert labels.pop("container") == SERVING["name"]
        assert any(
            (kind, name) == ("gauge", query[1]) and labels.items() <= its.items() for kind, name, its in samples
        ), query[0]
        names.append(query[1])
    assert names == ["zopilot_queue_cost", "zopilot_rows"]


def test_replicas_are_added_before_one_refuses_and_there_is_always_one() -> None:
    scaling = MANIFESTS["ScaledObject"]["spec"]
    threshold = int(scaling["triggers"][0]["metadata"]["threshold"])
    assert threshold * 2 < settings.read(literal(SERVING)).queue_tokens
    assert 1 <= scaling["minReplicaCount"] < scaling["maxReplicaCount"]
    # A trigger without figures must not read as nothing to do.
    assert {each["metadata"]["ignoreNullValues"] for each in scaling["triggers"]} == {"false"}
