"""deploy/kubernetes/: objects that Kubernetes' own schemas take, whose references all lead somewhere, under the pod
security standard `restricted`, and network policies that let through what they should and nothing else."""

import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from search_spaces.faults import Invalid
from service.access import private_text
from service.api.guard import LOCAL, OPEN
from service.runner.runner import Runner

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
OLDEST = "1.30"  # as its README says
README = (FOLDER / "README.md").read_text()
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS = [item for name in KUSTOMIZATION["resources"] for item in yaml.safe_load_all((FOLDER / name).read_text())]
EXAMPLES = list(yaml.safe_load_all((FOLDER / "secrets.example.yaml").read_text()))


def called(item: dict) -> str:
    return f"{item['kind']} {item['metadata']['name']}"


def of_kind(kind: str) -> list[dict]:
    found = [item for item in OBJECTS if item["kind"] == kind]
    assert found, kind
    return found


(RAY,) = of_kind("RayCluster")
GROUPS = [RAY["spec"]["headGroupSpec"], *RAY["spec"]["workerGroupSpecs"]]


def templates() -> Iterator[tuple[str, dict]]:
    """Every pod template by the label `app` of its pods."""
    for item in [*OBJECTS, *({"spec": group} for group in GROUPS)]:
        if template := item.get("spec", {}).get("template"):
            yield template["metadata"]["labels"]["app"], template


PODS = dict(templates())
OURS = {"api", "runner", "ray-head", "ray-worker"}


def containers(pod: dict) -> list[dict]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def matching(selector: dict) -> set[str]:
    """The pods that labels select. Raises where the selector has a form that this does not know."""
    assert set(selector) <= {"matchLabels"}, selector
    wanted = selector.get("matchLabels", {}).items()
    return {app for app, template in PODS.items() if wanted <= template["metadata"]["labels"].items()}


# -- schemas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [i for i in [*OBJECTS, *EXAMPLES] if i["kind"] != "RayCluster"], ids=called)
def test_objects_fit_kubernetes_schemas(item):
    kubernetes_validate.validate(item, OLDEST, strict=True)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_rays_pods_fit_kubernetes_schemas(group):
    template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "ray"}, "template": group["template"]}
    kubernetes_validate.validate(template, OLDEST, strict=True)


def test_the_ray_cluster_has_the_fields_that_its_operator_knows():
    assert RAY["apiVersion"] == "ray.io/v1"
    spec, head, *workers = RAY["spec"], *GROUPS
    assert set(spec) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert set(head) == {"rayStartParams", "template"}
    for group in workers:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert spec["rayVersion"] == pinned[1]


def test_the_kustomization_has_every_file_and_the_release():
    files = {path.name for path in FOLDER.glob("*.yaml")}
    assert set(KUSTOMIZATION["resources"]) == files - {"kustomization.yaml", "secrets.example.yaml"}
    (namespace,) = of_kind("Namespace")
    assert KUSTOMIZATION["namespace"] == namespace["metadata"]["name"]
    (image,) = KUSTOMIZATION["images"]
    assert image["newTag"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"{image['newName']}:{image['newTag']}" in README
    assert {app for app, pod in PODS.items() if all(c["image"] == image["name"] for c in containers(pod))} == OURS
    assert not any(re.search(r"[:\-] [&*]\w", (FOLDER / name).read_text()) for name in files), (
        "no anchors: tools differ"
    )


# -- references --------------------------------------------------------------------------------------------------------


def test_services_lead_to_pods_and_workloads_to_their_own():
    for service in of_kind("Service"):
        (app,) = matching({"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            assert port.get("targetPort", port["port"]) in ports(app), called(service)
    for workload in (*of_kind("Deployment"), *of_kind("StatefulSet")):
        assert matching(workload["spec"]["selector"]) == {workload["spec"]["template"]["metadata"]["labels"]["app"]}
        assert workload["spec"].get("serviceName", "valkey") in {s["metadata"]["name"] for s in of_kind("Service")}


def ports(app: str) -> set[Any]:
    listed = [port for container in containers(PODS[app]) for port in container.get("ports", ())]
    return {port["name"] for port in listed} | {port["containerPort"] for port in listed}


@pytest.mark.parametrize("app", PODS)
def test_what_a_pod_refers_to_is_there_and_used(app):
    spec = PODS[app]["spec"]
    claimed = {c["metadata"]["name"] for item in OBJECTS for c in item.get("spec", {}).get("volumeClaimTemplates", ())}
    volumes = {volume["name"]: volume for volume in spec["volumes"]} | (
        {c: {} for c in claimed} if app == "valkey" else {}
    )
    mounted = [mount for container in containers(PODS[app]) for mount in container["volumeMounts"]]
    assert {mount["name"] for mount in mounted} == set(volumes)
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    for volume in volumes.values():
        assert volume.get("persistentVolumeClaim", {"claimName": "store"})["claimName"] in claims
    for container in containers(PODS[app]):
        places = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert len(set(places)) == len(places)
        for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
            how = container.get(probe, {})
            if reached := how.get("tcpSocket") or how.get("httpGet"):
                assert reached["port"] in {port["name"] for port in container["ports"]}
        for variable in container.get("env", ()):
            earlier = {v["name"] for v in container["env"][: container["env"].index(variable)]}
            assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= earlier


def test_secrets_named_are_those_that_the_readme_makes():
    made = {}
    for line in re.findall(r"create secret generic .+", README):
        made[line.split()[3]] = set(re.findall(r"--from-(?:literal|file)=([\w.]+)=", line))
    used: dict[str, set[str]] = {RAY["spec"]["authOptions"]["secretName"]: {"auth_token"}}
    for pod in PODS.values():
        for container in containers(pod):
            for variable in container.get("env", ()):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    used.setdefault(reference["name"], set()).add(reference["key"])
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume:
                used.setdefault(volume["secret"]["secretName"], set()).add("tokens.json")
    assert used == made
    assert {e["metadata"]["name"]: set(e["stringData"]) for e in EXAMPLES}.items() <= used.items()
    assert {value for example in EXAMPLES for value in example["stringData"].values()} == {"REPLACE"}


def test_names_in_the_readmes_commands_are_there():
    there = {(item["kind"].lower(), item["metadata"]["name"]) for item in OBJECTS}
    named = set(re.findall(r"\b(deployment|service)/(\w+)", README)) | set(re.findall(r"(raycluster) (\w+)", README))
    assert len(named) == 4
    assert named <= there
    assert set(re.findall(r"--namespace (\w+)", README)) == {KUSTOMIZATION["namespace"]}


# -- the parts agree ---------------------------------------------------------------------------------------------------


def environment(app: str) -> dict[str, str]:
    (container,) = PODS[app]["spec"]["containers"]
    return {variable["name"]: variable.get("value", "secret") for variable in container.get("env", ())}


def test_the_board_is_the_one_that_is_there_and_keeps_a_log():
    for app in ("api", "runner"):
        assert environment(app)["CONTINUA_BOARD"] == "redis://:$(VALKEY_PASSWORD)@valkey:6379/0"
    (service,) = [s for s in of_kind("Service") if s["metadata"]["name"] == "valkey"]
    assert service["spec"]["ports"][0]["port"] == 6379
    assert {app for app in PODS if "CONTINUA_BOARD" in environment(app)} == {"api", "runner"}
    (script,) = PODS["valkey"]["spec"]["containers"][0]["args"]
    assert {"appendonly yes", "requirepass $REDISCLI_AUTH", "dir /data"} <= set(script.split("\n"))
    assert script.startswith("exec "), "the shell would not pass signals on"


def test_every_part_mounts_the_store_where_the_image_has_it():
    (where,) = re.findall(r"CONTINUA_STORE=(\S+)", (ROOT / "deploy" / "Dockerfile").read_text())
    for app in OURS:
        (container,) = PODS[app]["spec"]["containers"]
        assert {"name": "store", "mountPath": where} in container["volumeMounts"], app
    (claim,) = of_kind("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_runner_joins_the_cluster_with_its_token_and_has_time_to_hand_back():
    found = environment("runner")
    assert found["RAY_ADDRESS"] == f"{RAY['metadata']['name']}-head-svc:6379"
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_AUTH_TOKEN"] == "secret"
    grace = inspect.signature(Runner).parameters["grace"].default
    assert PODS["runner"]["spec"]["terminationGracePeriodSeconds"] >= 2 * grace + 10
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert int(compose["services"]["runner"]["stop_grace_period"].removesuffix("s")) >= 2 * grace + 10


def test_the_servers_tokens_come_as_a_file_that_it_takes(tmp_path):
    spec = PODS["api"]["spec"]
    (copying,), (serving,) = spec["initContainers"], spec["containers"]
    program, mode, source, target = copying["command"]
    assert (program, mode) == ("install", "--mode=600")
    places = {mount["mountPath"]: mount["name"] for mount in copying["volumeMounts"]}
    assert {"name": places[str(Path(target).parent)], "mountPath": str(Path(target).parent)} in serving["volumeMounts"]
    (config,) = re.findall(r"XDG_CONFIG_HOME=(\S+)", (ROOT / "deploy" / "Dockerfile").read_text())
    assert target == f"{config}/continua/tokens.json"
    assert str(Path(source).parent) in places
    mounted = tmp_path / "tokens.json"
    mounted.write_text("{}")
    mounted.chmod({v["name"]: v for v in spec["volumes"]}["secret"]["secret"]["defaultMode"])
    with pytest.raises(Invalid, match="0600"):
        private_text(mounted)  # why it is copied
    mounted.chmod(int(mode.removeprefix("--mode="), 8))
    assert private_text(mounted) == "{}"


def test_probes_of_the_api_name_a_host_that_it_answers_to():
    (container,) = PODS["api"]["spec"]["containers"]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    for probe in probes:
        assert probe["path"] in OPEN
        (header,) = probe["httpHeaders"]
        assert header["name"] == "Host"
        assert header["value"] in LOCAL


# -- security ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", PODS)
def test_pods_are_restricted(app):
    spec = PODS[app]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    whole = spec["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert min(whole["runAsUser"], whole["runAsGroup"], whole["fsGroup"]) > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(PODS[app]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for container in spec["containers"]:
        assert "memory" in container["resources"]["limits"]
    assert all(volume.keys() & {"emptyDir", "secret", "persistentVolumeClaim"} for volume in spec["volumes"])


def test_the_namespace_enforces_it():
    (namespace,) = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def peers(rule: dict, key: str) -> set[str]:
    """The pods of this namespace that a rule names, and `outside` where it names others."""
    if key not in rule:
        return {*PODS, "outside"}
    found = set()
    for peer in rule[key]:
        found |= {"outside"} if "namespaceSelector" in peer else matching(peer["podSelector"])
    return found


def allowed(direction: str, key: str) -> set[tuple[str, str, str]]:
    """(pod, peer, port) of what policies let through in one direction; pods that none selects let through anything."""
    policies = [p["spec"] for p in of_kind("NetworkPolicy") if direction in p["spec"]["policyTypes"]]
    chosen = set().union(*(matching(policy["podSelector"]) for policy in policies))
    found = {(app, "anything", "*") for app in set(PODS) - chosen}
    for policy in policies:
        for rule in policy.get(direction.lower(), ()):
            for app in matching(policy["podSelector"]):
                for port in rule.get("ports", [{"port": "*"}]):
                    found |= {(app, peer, str(port["port"])) for peer in peers(rule, key)}
    return found


def test_pods_that_nobody_thought_of_are_denied_everything():
    (deny,) = [policy["spec"] for policy in of_kind("NetworkPolicy") if policy["metadata"]["name"] == "deny"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert all(set(policy["spec"]["policyTypes"]) <= {"Ingress", "Egress"} for policy in of_kind("NetworkPolicy"))


def test_network_policies_let_through_what_they_should_and_nothing_else():
    nodes = {"runner", "ray-head", "ray-worker"}
    among = {(a, b, "*") for a in nodes for b in nodes}
    into = {("valkey", "api", "redis"), ("valkey", "runner", "redis")} | among
    into |= {("api", peer, "http") for peer in (*PODS, "outside")}
    assert allowed("Ingress", "from") == into
    out = {("api", "valkey", "redis"), ("runner", "valkey", "redis")} | among
    out |= {(app, "outside", "53") for app in PODS}
    assert allowed("Egress", "to") == out
    for policy in of_kind("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            for port in rule.get("ports", ()):
                assert all(port["port"] in ports(app) for app in matching(policy["spec"]["podSelector"]))
