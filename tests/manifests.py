"""Kubernetes manifests as the operators and the cluster would read them, so that a test can plant a fault and see it found.

`render(folder, ...)` is what `kubectl kustomize` makes of a base and components; `faults(documents)` are the violations of
schemas and of our own rules, one sentence each; `reaches` applies the network policies.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[1]
KUSTOMIZE = ROOT / "infra/kustomize"
COMPONENTS = ("service", "redis", "monitoring", "kueue", "raycronjob")
IMAGE_HOME, CONFIG_HOME = "/opt/oral-ray/", "/etc/oral-ray/"
KUBERNETES = "1.32"
SERVE_ENVIRONMENT = dict(re.findall(r"(RAY_SERVE_\w+)=(\S+)", (ROOT / "README.md").read_text()))  # its export lines
# The KubeRay CRDs (v1.7.0) are not ours to ship: beside the clone, or where $KUBERAY_CRDS says.
_FOLDERS = [Path(os.environ.get("KUBERAY_CRDS", "/nowhere")), *(parent / "shared/crds" for parent in ROOT.parents)]
CRDS = next((folder for folder in _FOLDERS if folder.is_dir()), None)
# Kinds of operators that publish no schema which a package carries; their rules stand below.
NO_SCHEMA = {"PodMonitor", "ClusterQueue", "LocalQueue", "ResourceFlavor"}
CLUSTER_SCOPED = {"Namespace", "ClusterQueue", "ResourceFlavor"}
_SECRET_NAME = re.compile(r"(password|token|secret|access_key|credential)", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN|hf_[A-Za-z0-9]{20}"
    r"|^[^#\n]*\b\w*(password|secret|access_key)\w*[ ]*[=:][ ]*['\"]?\w"
    r"|^[^#\n]*\btokens?[ ]*[=:][ ]*['\"](?!file:|env:)\w",
    re.IGNORECASE | re.MULTILINE,
)
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod template in a document; `role` is head or worker for Ray's, with the labels that the operator adds."""

    owner: str
    role: str
    group: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def ports(self) -> dict[str, int]:
        """Container ports by name."""
        return {port["name"]: port["containerPort"] for c in self.spec["containers"] for port in c.get("ports", ())}


@cache
def render(folder: Path) -> list[Document]:
    """The documents of a kustomization, by kubectl."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def compose(folder: Path, components: Iterable[str], **more: Any) -> list[Document]:
    """The base with some components, from a kustomization written into an empty folder."""

    def relative(*parts: str) -> str:
        return os.path.relpath(KUSTOMIZE.joinpath(*parts), folder.resolve())

    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [relative("base")],
        "components": [relative("components", name) for name in components],
        **more,
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return render(folder)


def has_kubectl() -> bool:
    """Whether there is a kubectl that knows components and replacements (kustomize 5 or newer)."""
    if not shutil.which("kubectl"):
        return False
    done = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, timeout=60)
    found = re.search(r"Kustomize Version: v(\d+)", done.stdout)
    return bool(found and int(found[1]) >= 5)


needs_kubectl = pytest.mark.skipif(
    not has_kubectl(), reason="no kubectl with kustomize 5 on this machine: not rendered"
)
needs_crds = pytest.mark.skipif(CRDS is None, reason="no KubeRay CRDs in ../shared/crds or $KUBERAY_CRDS: not checked")


def named(document: Document) -> str:
    """`Kind/name`."""
    return f"{document['kind']}/{document['metadata']['name']}"


def pick(documents: Iterable[Document], kind: str, name: str = "") -> list[Document]:
    """The documents of a kind (and name)."""
    return [d for d in documents if d["kind"] == kind and name in ("", d["metadata"]["name"])]


def ray_clusters(documents: Iterable[Document]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every cluster spec with the document it stands in."""
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "RayCluster":
            yield named(document), spec
        elif document["kind"] == "RayService":
            yield named(document), spec["rayClusterConfig"]
        elif document["kind"] == "RayCronJob":
            yield named(document), spec["jobTemplate"]["rayClusterSpec"]


def pods(documents: list[Document]) -> Iterator[Pod]:
    """Every pod template, those of Ray clusters with the operator's labels."""
    for owner, cluster in ray_clusters(documents):
        groups = [("head", "head", cluster["headGroupSpec"])]
        groups += [("worker", group["groupName"], group) for group in cluster["workerGroupSpecs"]]
        for role, name, group in groups:
            labels = group["template"]["metadata"]["labels"] | {"ray.io/node-type": role, "ray.io/group": name}
            yield Pod(owner, role, name, labels, group["template"]["spec"])
    for document in documents:
        template = document.get("spec", {}).get("template")
        if document["kind"] == "CronJob":
            template = document["spec"]["jobTemplate"]["spec"]["template"]
        if template:
            yield Pod(named(document), "", "", template["metadata"]["labels"], template["spec"])


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels only) takes these labels."""
    assert selector is not None and set(selector) <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= labels.items()


def reaches(documents: list[Document], source: tuple[str, Mapping[str, str]], target: Pod, port: int) -> bool:
    """Whether a pod (its namespace, its labels) may open a connection to a port of a pod of ours."""
    policies = [p["spec"] for p in pick(documents, "NetworkPolicy")]
    namespace, labels = source
    ours = {"kubernetes.io/metadata.name": "oral-ray"}
    there = {"kubernetes.io/metadata.name": namespace} | ({"oral-ray.io/client": "true"} if namespace == "web" else {})

    def peer(rule: Mapping[str, Any], space: Mapping[str, str], which: Mapping[str, str]) -> bool:
        if "ipBlock" in rule:
            return False  # what is outside the cluster
        in_space = selects(rule["namespaceSelector"], space) if "namespaceSelector" in rule else space == ours
        return in_space and selects(rule.get("podSelector", {}), which)

    def lets(
        direction: str, side: str, here: Mapping[str, str], space: Mapping[str, str], which: Mapping[str, str]
    ) -> bool:
        about = [p for p in policies if direction in p["policyTypes"] and selects(p["podSelector"], here)]
        rules = [rule for p in about for rule in p.get(direction.lower(), ())]
        return not about or any(
            any(peer(who, space, which) for who in rule[side])
            and ("ports" not in rule or port in [p["port"] for p in rule["ports"]])
            for rule in rules
        )

    inward = lets("Ingress", "from", target.labels, there, labels)
    return inward and (namespace != "oral-ray" or lets("Egress", "to", labels, ours, target.labels))


def faults(documents: list[Document]) -> list[str]:
    """Every violation of a schema or of a rule, one sentence each."""
    rules = (_schemas, _namespaces, _secrets, _tokens, _hardening, _references, _ports, _spot, _disruption)
    return [fault for rule in rules for fault in rule(documents)]


def _schemas(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if fault := _schema_fault(json.dumps(document)):
            yield f"{named(document)}: {fault}"


@cache
def _schema_fault(text: str) -> str:
    document = json.loads(text)
    try:
        if document["apiVersion"].startswith("ray.io/"):
            if CRDS:
                jsonschema.Draft202012Validator(crd_schema(document["kind"])).validate(document)
        elif document["kind"] not in NO_SCHEMA:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except jsonschema.ValidationError as error:
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
    return ""


@cache
def crd_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a KubeRay kind, strict about unknown keys."""
    assert CRDS is not None
    text = gzip.decompress((CRDS / f"ray.io_{kind.lower()}s.yaml.gz").read_bytes())
    crd = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    return _strict(version["schema"]["openAPIV3Schema"])


def _strict(node: dict[str, Any]) -> dict[str, Any]:
    out = {key: value for key, value in node.items() if not key.startswith("x-") and key not in ("default", "format")}
    if node.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    elif node.get("nullable"):
        out["type"] = [node["type"], "null"]
    if properties := node.get("properties"):
        out["properties"] = {key: _strict(value) for key, value in properties.items()}
        out["required"] = [key for key in node.get("required", ()) if "default" not in properties[key]]
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            out[key] = _strict(node[key])
    return out


def _namespaces(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        wanted = None if document["kind"] in CLUSTER_SCOPED else "oral-ray"
        if (found := document["metadata"].get("namespace")) != wanted:
            yield f"{named(document)}: namespace is {found}, not {wanted}"


def _secrets(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if document["kind"] == "Secret":
            yield f"{named(document)}: a Secret; refer to one that is made elsewhere"
        for key, value in document.get("data", {}).items() if document["kind"] == "ConfigMap" else ():
            if _SECRET_NAME.search(key) or _SECRET_VALUE.search(str(value)):
                yield f"{named(document)}: {key} looks like a secret value"
    for pod in pods(documents):
        for container in pod.spec["containers"]:
            for variable in container.get("env", ()):
                if _SECRET_NAME.search(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
                    yield f"{pod.owner}: {variable['name']} is no reference to a Secret"
            for word in [*container.get("command", ()), *container.get("args", ())]:
                if _SECRET_VALUE.search(word):
                    yield f"{pod.owner}: {word!r} looks like a secret value"


def _tokens(documents: list[Document]) -> Iterator[str]:
    for owner, cluster in ray_clusters(documents):
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield f"{owner}: no token authentication (authOptions.mode)"
        if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
            yield f"{owner}: tasks may run on the head (rayStartParams.num-cpus)"
        if cluster["headGroupSpec"].get("serviceType") != "ClusterIP":
            yield f"{owner}: the dashboard is offered outside the cluster (serviceType)"
        if cluster.get("autoscalerOptions", {}).get("version") != "v2":
            yield f"{owner}: autoscaler is not v2"


def _hardening(documents: list[Document]) -> Iterator[str]:
    for pod in pods(documents):
        where = f"{pod.owner} {pod.group}".strip()
        general = pod.spec.get("securityContext", {})
        if not general.get("runAsNonRoot") or general.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: pod is not restricted (runAsNonRoot, seccompProfile)"
        if pod.spec.get("automountServiceAccountToken") is not (pod.role == "head"):
            yield f"{where}: automountServiceAccountToken must be {pod.role == 'head'}"
        for container in pod.spec["containers"]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where}: container {container['name']} is not restricted"
            if "memory" not in container.get("resources", {}).get("limits", {}):
                yield f"{where}: container {container['name']} has no memory limit"
            if not re.search(r":[^/]+$|@sha256:", container["image"]) or container["image"].endswith(":latest"):
                yield f"{where}: image {container['image']} names no version"


def _references(documents: list[Document]) -> Iterator[str]:
    there = {named(document) for document in documents}
    for pod in pods(documents):
        wanted = {f"ServiceAccount/{pod.spec['serviceAccountName']}"} if "serviceAccountName" in pod.spec else set()
        wanted |= {f"ConfigMap/{v['configMap']['name']}" for v in pod.spec.get("volumes", ()) if "configMap" in v}
        for container in pod.spec["containers"]:
            sources = container.get("envFrom", ())
            wanted |= {f"ConfigMap/{s['configMapRef']['name']}" for s in sources if "configMapRef" in s}
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            have = {v["name"] for v in pod.spec.get("volumes", ())} | {"data"}
            yield from (f"{pod.owner}: no volume {name}" for name in sorted(mounted - have))
        if pod.role and "serviceAccountName" not in pod.spec:
            yield f"{pod.owner} {pod.group}: no service account"
        yield from (f"{pod.owner}: refers to {name}, which is nowhere" for name in sorted(wanted - there))


def _ports(documents: list[Document]) -> Iterator[str]:
    ours = [*pods(documents)]

    def check(owner: str, selector: Mapping[str, Any], port: int | str) -> Iterator[str]:
        chosen = [pod for pod in ours if selects(selector, pod.labels)]
        if not chosen:
            yield f"{owner}: selects no pod"
        elif not any(port in pod.ports or port in pod.ports.values() for pod in chosen):
            yield f"{owner}: no selected pod has port {port}"

    for policy in pick(documents, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            for port in rule.get("ports", ()):
                yield from check(named(policy), policy["spec"]["podSelector"], port["port"])
        for rule in policy["spec"].get("egress", ()):
            inside = [to["podSelector"] for to in rule["to"] if "podSelector" in to and "namespaceSelector" not in to]
            for selector in inside:
                for port in rule.get("ports", ()):
                    yield from check(named(policy), selector, port["port"])
    for service in pick(documents, "Service"):
        for port in service["spec"]["ports"]:
            yield from check(named(service), {"matchLabels": service["spec"]["selector"]}, port["targetPort"])
    for monitor in pick(documents, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            yield from check(named(monitor), monitor["spec"]["selector"], endpoint["port"])


def _spot(documents: list[Document]) -> Iterator[str]:
    for pod in pods(documents):
        spot = "spot" in json.dumps([pod.spec.get("nodeSelector"), pod.spec.get("tolerations")])
        if spot and not (pod.role == "worker" and pod.labels.get("app.kubernetes.io/component") == "train"):
            yield f"{pod.owner} {pod.group}: may run on spot nodes, only training workers may"
    for owner, cluster in ray_clusters(documents):
        for group in cluster["workerGroupSpecs"]:
            gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
            if gpus and (group["minReplicas"], group["replicas"]) != (0, 0):
                yield f"{owner} {group['groupName']}: GPU nodes stand while nothing asks for them"
            if bool(gpus) != group["template"]["spec"]["containers"][0]["image"].rpartition(":")[0].endswith("-cuda"):
                yield f"{owner} {group['groupName']}: GPUs and the CUDA image go together"


def _disruption(documents: list[Document]) -> Iterator[str]:
    ours = [*pods(documents)]
    for budget in pick(documents, "PodDisruptionBudget"):
        if not isinstance(budget["spec"].get("minAvailable"), int) or "maxUnavailable" in budget["spec"]:
            yield f"{named(budget)}: pods of a custom resource allow only a whole minAvailable"
        if not any(selects(budget["spec"]["selector"], pod.labels) for pod in ours):
            yield f"{named(budget)}: selects no pod"
