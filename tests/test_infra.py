"""What is shipped to run oral_ray elsewhere fits the code: manifests, network, image, permissions; nothing runs here.

Manifests are rendered by kubectl, which needs no cluster. Every rule is seen to find a fault planted in good manifests.
"""

import copy
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import (  # fmt: skip
    COMPONENTS,
    CONFIG_HOME,
    IMAGE_HOME,
    KUSTOMIZE,
    ROOT,
    Document,
    compose,
    faults,
    named,
    needs_crds,
    needs_kubectl,
    pick,
    pods,
    ray_clusters,
    reaches,
    render,
)

from oral_ray import __version__, cli
from oral_ray.config import Config, load_config, with_overrides

SHIPPED = ("base", "overlays/production", "overlays/small")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The base with every component but the RayCronJob, which takes the CronJob away."""
    return compose(tmp_path_factory.mktemp("all"), [name for name in COMPONENTS if name != "raycronjob"])


@pytest.fixture(scope="module")
def nightly_cluster(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The base with the RayCronJob in place of the CronJob."""
    return compose(tmp_path_factory.mktemp("cron"), ["raycronjob"])


@needs_kubectl
@pytest.mark.parametrize("folder", SHIPPED)
def test_what_is_shipped_has_no_fault(folder: str):
    assert faults(render(KUSTOMIZE / folder)) == []


@needs_kubectl
@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_stands_on_the_base_alone(tmp_path: Path, name: str):
    documents = compose(tmp_path, ["service", name] if name == "redis" else [name])
    assert faults(documents) == []


@needs_crds
@needs_kubectl
def test_the_crds_were_there_and_looked_at(everything: list[Document]):
    kinds = {document["kind"] for document in everything if document["apiVersion"] == "ray.io/v1"}
    assert kinds == {"RayCluster", "RayService"}


def at(document: Document, path: str) -> tuple[Any, Any]:
    """The node that holds the last step of a dotted path, and that step."""
    *steps, last = [int(step) if step.isdigit() else step.replace("~", ".") for step in path.split(".")]
    node: Any = document
    for step in steps:
        node = node[step]
    return node, last


TRAIN, SERVE, CRON = "RayCluster/oral-ray-train", "RayService/oral-ray-serve", "CronJob/oral-ray-nightly"
_HEAD = "spec.headGroupSpec.template.spec"
_CPU, _GPU = (f"spec.workerGroupSpecs.{i}.template.spec" for i in (0, 1))
_SUBMIT = "spec.jobTemplate.spec.template.spec"
_SERVE_CPU = "spec.rayClusterConfig.workerGroupSpecs.0.template.spec"
PLANTED = [
    # (document, path, value; None takes the key away; what the one sentence says)
    (CRON, "spec.concurencyPolicy", "Forbid", "'concurencyPolicy' was unexpected"),
    (CRON, "spec.jobTemplate.spec.backoffLimit", "one", "'one' is not of type 'integer'"),
    ("NetworkPolicy/train", "spec.ingres", [], "'ingres' was unexpected"),
    ("ConfigMap/oral-ray-env", "metadata.namespace", "default", "namespace is default"),
    ("ClusterQueue/oral-ray", "metadata.namespace", "oral-ray", "namespace is oral-ray, not None"),
    ("ConfigMap/oral-ray-env", "data.AWS_SECRET_ACCESS_KEY", "x", "looks like a secret value"),
    ("ConfigMap/oral-ray-configs", "data.cluster~toml", 'password = "hunter2"', "looks like a secret value"),
    ("ConfigMap/oral-ray-configs", "data.cluster~toml", "x = 'AKIAABCDEFGHIJKLMNOP'", "looks like a secret value"),
    ("ConfigMap/oral-ray-configs", "data.cluster~toml", "[serve]\ntokens = 'abc'", "looks like a secret value"),
    (CRON, f"{_SUBMIT}.containers.0.env.1", {"name": "RAY_AUTH_TOKEN", "value": "abc"}, "no reference to a Secret"),
    (TRAIN, "spec.authOptions.mode", "disabled", "no token authentication"),
    (SERVE, "spec.rayClusterConfig.authOptions", {}, "no token authentication"),
    (TRAIN, "spec.headGroupSpec.rayStartParams.num-cpus", "2", "tasks may run on the head"),
    (TRAIN, "spec.headGroupSpec.serviceType", "LoadBalancer", "the dashboard is offered outside"),
    (TRAIN, "spec.autoscalerOptions.version", "v1", "autoscaler is not v2"),
    (TRAIN, f"{_HEAD}.serviceAccountName", "oral-ray-trian", "refers to ServiceAccount/oral-ray-trian, which is nowhere"),
    (TRAIN, f"{_CPU}.serviceAccountName", None, "no service account"),
    (TRAIN, f"{_CPU}.automountServiceAccountToken", True, "automountServiceAccountToken must be False"),
    (TRAIN, f"{_CPU}.securityContext.runAsNonRoot", False, "pod is not restricted"),
    (SERVE, f"{_SERVE_CPU}.containers.0.securityContext", {}, "container ray-worker is not restricted"),
    (SERVE, f"{_SERVE_CPU}.containers.0.image", "oral-ray:latest", "names no version"),
    (SERVE, f"{_SERVE_CPU}.volumes.0.configMap.name", "oral-ray-serve-config", "ConfigMap/oral-ray-serve-config, which"),
    (SERVE, f"{_SERVE_CPU}.tolerations", [{"key": "oral-ray.io/capacity", "value": "spot"}], "only training workers may"),
    (TRAIN, "spec.workerGroupSpecs.1.minReplicas", 1, "GPU nodes stand while nothing asks"),
    (TRAIN, f"{_GPU}.containers.0.image", "oral-ray:1", "GPUs and the CUDA image go together"),
    ("NetworkPolicy/serve", "spec.ingress.1.ports.0.port", 8001, "no selected pod has port 8001"),
    ("NetworkPolicy/submit", "spec.egress.0.ports.0.port", 8266, "no selected pod has port 8266"),
    ("Service/oral-ray-redis", "spec.ports.0.targetPort", "rediss", "no selected pod has port rediss"),
    ("PodMonitor/oral-ray-heads", "spec.podMetricsEndpoints.1.port", "autoscaler", "no selected pod has port autoscaler"),
    ("PodMonitor/oral-ray-workers", "spec.selector.matchLabels", {"app": "ray"}, "selects no pod"),
    ("PodDisruptionBudget/oral-ray-train-head", "spec.minAvailable", "50%", "only a whole minAvailable"),
]  # fmt: skip
PLANTED_IN_CUSTOM_RESOURCES = [
    (TRAIN, "spec.enableInTreeAutoscalling", True, "'enableInTreeAutoscalling' was unexpected"),
    (TRAIN, f"{_CPU}.containers.0.imagePullPolicyy", "Always", "'imagePullPolicyy' was unexpected"),
    (TRAIN, "spec.workerGroupSpecs.0.maxReplicas", "eight", "'eight' is not of type 'integer'"),
    (TRAIN, "spec.headGroupSpec.rayStartParams.num-gpus", 0, "0 is not of type 'string'"),
    (TRAIN, "spec.autoscalerOptions.upscalingMode", "Fast", "'Fast' is not one of"),
    (SERVE, "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.ports.0.containerPort", "6379",
     "'6379' is not of type 'integer'"),
    (SERVE, "spec.serveConfigV2", {"applications": []}, "is not of type 'string'"),
]  # fmt: skip


def check_planted(documents: list[Document], where: str, path: str, value: Any, found: str) -> None:
    planted = copy.deepcopy(documents)
    node, last = at(next(document for document in planted if named(document) == where), path)
    if value is None:
        del node[last]
    else:
        node[last] = value
    said = faults(planted)
    assert len(said) == 1, said
    assert found in said[0]


@needs_kubectl
@pytest.mark.parametrize(("where", "path", "value", "found"), PLANTED)
def test_a_planted_fault_is_found(everything: list[Document], where: str, path: str, value: Any, found: str):
    check_planted(everything, where, path, value, found)


@needs_crds
@needs_kubectl
@pytest.mark.parametrize(("where", "path", "value", "found"), PLANTED_IN_CUSTOM_RESOURCES)
def test_a_typo_or_wrong_type_in_a_custom_resource_is_found(
    everything: list[Document], where: str, path: str, value: Any, found: str
):
    check_planted(everything, where, path, value, found)


@needs_kubectl
def test_only_who_must_reach_a_port_reaches_it(everything: list[Document]):
    labels = {(pod.labels.get("app.kubernetes.io/component", "redis"), pod.role): pod for pod in pods(everything)}
    train, serve, worker, redis = (
        labels[key] for key in (("train", "head"), ("serve", "head"), ("serve", "worker"), ("redis", ""))
    )
    [everywhere] = pick(everything, "NetworkPolicy", "deny-all")  # also what no other policy is about
    assert everywhere["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    sources = {
        "submit": ("oral-ray", labels["submit", ""].labels),
        "train": ("oral-ray", labels["train", "worker"].labels),
        "serve": ("oral-ray", worker.labels),
        "operator": ("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
        "prometheus": ("monitoring", {"app.kubernetes.io/name": "prometheus"}),
        "client": ("web", {"app": "shop"}),
        "stranger": ("default", {"app.kubernetes.io/component": "train"}),
    }
    targets = {
        "train dashboard": (train, 8265), "train gcs": (train, 6379), "train metrics": (train, 8080),
        "serve dashboard": (serve, 8265), "serve http": (worker, 8000), "serve metrics": (worker, 8080),
        "redis": (redis, 6379), "submit": (labels["submit", ""], 8265),
    }  # fmt: skip
    reached = {
        who: {what for what, (pod, port) in targets.items() if reaches(everything, source, pod, port)}
        for who, source in sources.items()
    }
    assert reached == {
        "submit": {"train dashboard"},
        "train": {"train dashboard", "train gcs", "train metrics"},
        "serve": {"serve dashboard", "serve http", "serve metrics", "redis"},
        "operator": {"train dashboard", "serve dashboard", "serve http"},
        "prometheus": {"train metrics", "serve metrics"},
        "client": {"serve http"},
        "stranger": set(),
    }


@needs_kubectl
def test_a_changed_configuration_rolls_out_the_service_and_leaves_the_jobs_name(tmp_path: Path):
    (tmp_path / "cluster.toml").write_text('name = "mine"\n[store]\nuri = "s3://mine/store"\n')
    own = [
        {"name": name, "namespace": "oral-ray", "behavior": "replace", "files": ["cluster.toml"]}
        for name in ("oral-ray-configs", "oral-ray-serve-config")
    ]
    changed = compose(tmp_path, ["service"], configMapGenerator=own)
    assert faults(changed) == []
    names = {}
    for about, documents in (("changed", changed), ("shipped", render(KUSTOMIZE / "overlays/small"))):
        for owner, cluster in ray_clusters(documents):
            names[about, owner] = cluster["headGroupSpec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
    assert names["changed", TRAIN] == names["shipped", TRAIN] == "oral-ray-configs"
    assert names["changed", SERVE] != names["shipped", SERVE]
    assert "s3://mine/store" in pick(changed, "ConfigMap", "oral-ray-configs")[0]["data"]["cluster.toml"]


def job_config(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration that a job's own parser makes of its command line, paths in the image taken to the repository."""
    python, script, *arguments = (
        word.replace(IMAGE_HOME, f"{ROOT}/").replace(CONFIG_HOME, f"{ROOT}/infra/configs/") for word in words
    )
    assert python == "python"
    seen: list[Any] = []
    monkeypatch.setattr(cli, "guarded", lambda call, args, verbose: seen.append(args) or 0)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(script, run_name="__main__")
    assert stopped.value.code == 0, "the job's parser refuses its arguments"
    return cli._config(seen[0])


def submission(documents: list[Document]) -> dict[str, Any]:
    """The parsed options of the CronJob's `ray job submit`, by Ray's own parser."""
    from ray.dashboard.modules.job.cli import job_cli_group

    [cron] = pick(documents, "CronJob")
    [container] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    ray, job, submit, *words = [*container["command"], *container["args"]]
    assert (ray, job) == ("ray", "job")
    return job_cli_group.commands[submit].make_context(submit, words).params


@needs_kubectl
@pytest.mark.parametrize("folder", SHIPPED)
def test_the_nightly_command_is_taken_by_ray_and_by_the_job_and_fits_the_cluster(
    folder: str, monkeypatch: pytest.MonkeyPatch
):
    documents = render(KUSTOMIZE / folder)
    options = submission(documents)
    assert options["address"] == "http://oral-ray-train-head-svc:8265"  # the operator's name for the head's Service
    assert pick(documents, "RayCluster", "oral-ray-train")
    assert not options["no_wait"]  # else a failed job would pass for a good one
    assert pick(documents, "CronJob")[0]["spec"]["concurrencyPolicy"] == "Forbid"
    config = job_config([*options["entrypoint"]], monkeypatch)
    assert config.store.uri.startswith("s3://")
    assert [*misfits(config, documents)] == []


@needs_kubectl
def test_a_job_that_asks_for_more_than_any_group_has_is_found(everything: list[Document]):
    config = load_config(
        ROOT / "infra/configs/cluster.toml", ["training.gpus_per_worker=2", "serve.cpus_per_replica=3"]
    )
    assert [*misfits(config, everything)] == [
        "training: 2 workers of 4 CPUs and 2 GPUs have no group that holds them",
        "serve: 8 workers of 3 CPUs and 0 GPUs have no group that holds them",
    ]
    config = load_config(ROOT / "infra/configs/cluster.toml", ["training.num_workers=6", "training.cpus_per_worker=8"])
    assert [fault.partition(":")[0] for fault in misfits(config, everything)] == ["training"]


@needs_kubectl
def test_a_cluster_that_stands_empty_is_asked_for_as_many_tasks_as_it_may_grow_to(
    everything: list[Document], monkeypatch: pytest.MonkeyPatch
):
    import ray

    from oral_ray.cluster.tasks import num_in_flight

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 8e9})  # a head with num-cpus 0
    settings = load_config(ROOT / "infra/configs/cluster.toml").cluster
    [group] = [g for g in dict(ray_clusters(everything))[TRAIN]["workerGroupSpecs"] if g["groupName"] == "cpu"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert settings.num_cpus == group["maxReplicas"] * cpus
    assert num_in_flight(settings) == group["maxReplicas"] * (cpus // settings.cpus_per_task)
    assert num_in_flight(settings.model_copy(update={"num_cpus": None})) == 1


def overrides(service: Document) -> list[str]:
    """What a RayService sets beside its configuration file."""
    [application] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return [f"{key}={value}" for key, value in application["args"].items() if key != "config"]


def misfits(config: Config, documents: list[Document]) -> Iterator[str]:
    """What a configuration asks for and no worker group can grow to."""
    clusters = dict(ray_clusters(documents))
    services = [with_overrides(config, overrides(document)).serve for document in pick(documents, "RayService")]
    asks = [
        (TRAIN, "training", config.training.num_workers, config.training.cpus_per_worker, config.training.gpus_per_worker),
        (TRAIN, "tasks", 1, config.cluster.cpus_per_task, config.cluster.gpus_per_task),
        *((SERVE, "serve", serve.max_replicas, serve.cpus_per_replica, serve.gpus_per_replica) for serve in services),
    ]  # fmt: skip
    for owner, what, count, cpus, gpus in asks:
        if owner not in clusters:
            continue
        room = 0
        for group in clusters[owner]["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            have = int(limits["cpu"]), int(limits.get("nvidia.com/gpu", 0))
            fit = [int(have[0] // cpus)] + ([int(have[1] // gpus)] if gpus else [])
            room += group["maxReplicas"] * min(fit)
        if room < count:
            yield f"{what}: {count} workers of {cpus:g} CPUs and {gpus:g} GPUs have no group that holds them"


@needs_kubectl
def test_the_nightly_cluster_is_the_training_cluster_and_runs_the_same_command(
    nightly_cluster: list[Document], everything: list[Document]
):
    [cron] = pick(nightly_cluster, "RayCronJob")
    [cluster] = pick(nightly_cluster, "RayCluster")
    template = cron["spec"]["jobTemplate"]
    assert template["rayClusterSpec"] == cluster["spec"]
    assert tuple(template["entrypoint"].split()) == submission(everything)["entrypoint"]
    assert not pick(nightly_cluster, "CronJob")
    assert cron["spec"]["schedule"] == pick(everything, "CronJob")[0]["spec"]["schedule"]
    assert template["shutdownAfterJobFinishes"]


@needs_kubectl
@pytest.mark.parametrize("folder", ["overlays/production", "overlays/small"])
def test_the_service_manifest_names_an_application_that_builds_from_its_arguments(folder: str):
    from ray.serve import Application
    from ray.serve.schema import ServeDeploySchema

    [service] = pick(render(KUSTOMIZE / folder), "RayService")
    text = service["spec"]["serveConfigV2"].replace(CONFIG_HOME, f"{ROOT}/infra/configs/")
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    module, _, name = application.import_path.partition(":")
    build: Callable[..., Any] = getattr(__import__(module, fromlist=[name]), name)
    assert isinstance(build(application.args), Application)


@needs_kubectl
def test_the_service_reads_its_tokens_from_the_mounted_secret_wherever_its_ingress_runs(everything: list[Document]):
    kind, _, where = load_config(ROOT / "infra/configs/cluster.toml").serve.tokens.partition(":")
    assert kind == "file"  # a service that listens on the network without tokens refuses to start
    served = [pod for pod in pods(everything) if pod.owner == SERVE]
    assert {pod.role for pod in served} == {"head", "worker"}
    for pod in served:
        secrets = {v["name"]: v["secret"]["secretName"] for v in pod.spec["volumes"] if "secret" in v}
        mounts = {m["mountPath"]: secrets.get(m["name"]) for m in pod.spec["containers"][0]["volumeMounts"]}
        assert mounts[str(Path(where).parent)] == "oral-ray-tokens"


@needs_kubectl
def test_the_quota_of_the_queue_lets_every_group_grow_to_its_limit(everything: list[Document]):
    [queue] = pick(everything, "ClusterQueue")
    cluster = dict(ray_clusters(everything))[TRAIN]
    wanted = {"oral-ray-on-demand": [0, 0, 0], "oral-ray-spot": [0, 0, 0]}

    def add(pod: dict[str, Any], extra: dict[str, str], count: int) -> None:
        flavor = "oral-ray-spot" if "nodeSelector" in pod else "oral-ray-on-demand"
        asked = pod["containers"][0]["resources"]["requests"]
        cpus = int(asked["cpu"]) * 1000 + int(extra.get("cpu", "0m")[:-1])
        memory = int(asked["memory"][:-2]) * 1024 + int(extra.get("memory", "0Mi")[:-2])
        for i, amount in enumerate((cpus, memory, int(asked.get("nvidia.com/gpu", 0)))):
            wanted[flavor][i] += count * amount

    add(cluster["headGroupSpec"]["template"]["spec"], cluster["autoscalerOptions"]["resources"]["requests"], 1)
    for group in cluster["workerGroupSpecs"]:
        add(group["template"]["spec"], {}, group["maxReplicas"])
    [resources] = queue["spec"]["resourceGroups"]
    for flavor in resources["flavors"]:
        quota = {item["name"]: str(item["nominalQuota"]) for item in flavor["resources"]}
        have = [int(quota["cpu"]) * 1000, int(quota["memory"][:-2]) * 1024, int(quota["nvidia.com/gpu"])]
        assert all(h >= w for h, w in zip(have, wanted[flavor["name"]], strict=True)), (flavor["name"], wanted)


@needs_kubectl
def test_the_images_have_the_version_of_the_code_and_the_ray_that_is_tested(everything: list[Document]):
    import ray

    ours = {c["image"] for pod in pods(everything) for c in pod.spec["containers"] if "redis" not in c["image"]}
    assert ours == {f"oral-ray:{__version__}", f"oral-ray-cuda:{__version__}"}
    assert {cluster["rayVersion"] for _, cluster in ray_clusters(everything)} == {ray.__version__}
