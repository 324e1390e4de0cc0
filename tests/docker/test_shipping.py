"""What is shipped under docker/: by the tools' own validators where there are some, else by rules of our own; each
rule is shown to catch what it is for.
"""

import copy
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml

from pipeline.cli import main
from pipeline.declare.load import experiment_names, load_experiment
from tests.support.composed import COMPOSE, ROOT, dotenv, interpolated, services, variables

DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
SECRETS = {name: f"{name.lower()}-value" for name in dotenv((DOCKER / ".env.example").read_text(encoding="utf-8"))}
TEXT = COMPOSE.read_text(encoding="utf-8")
SLURM = DOCKER / "slurm" / "repro.sbatch"
GO_ON = DOCKER / "launch_or_resume.sh"
KUBERAY = sorted((DOCKER / "kuberay").glob("*.yaml"))
KUBERNETES = "1.33"  # whose schemas the manifests must fit


def tool(*words):
    """Run a program that the test environment brings; what it says, if it is not content."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def loaded(path):
    """A script of docker/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


without_torch = loaded(DOCKER / "without_torch.py")


# --- the commands in all of them ---------------------------------------------------------------------------


def refusal(words):
    """Why the command `repro WORDS` cannot be given, "" where it can; nothing is carried out."""
    command, name, rest = our_commands(), "repro", list(words)
    try:
        while hasattr(command, "commands"):
            name = rest.pop(0)
            command = command.commands[name]
        with command.make_context(name, rest) as context:
            asked = context.params
    except KeyError:
        return f"there is no command repro {name}"
    except Exception as error:  # noqa: BLE001 - whatever the parser of commands raises
        return f"repro {shlex.join(words)}: {getattr(error, 'message', '') or error!r}"
    wanted = asked.get("experiments") or asked.get("experiment") or ()
    for experiment in [wanted] if isinstance(wanted, str) else wanted:
        if experiment not in experiment_names():
            return f"there is no experiment {experiment}"
        if asked.get("scale") not in (None, *load_experiment(experiment).scales):
            return f"{experiment} has no scale {asked['scale']}"
    return ""


@cache
def our_commands():
    return typer.main.get_command(main.app)


COMMAND = re.compile(
    r"(?:^|[\s`'])repro ((?:node|launch|status|logs|cancel|resume|run|verify|leaderboard)\b[^`'&#;|]*)"
)


def in_text(text):
    """The commands in comments, scripts and pages, as words; a shell's variables stand for something."""
    for line in text.replace("\\\n", " ").splitlines():
        for found in COMMAND.findall(line):
            filled = found.replace('"$@"', "resnet/cifar10_depth").replace('"$(own)"', "1")
            yield shlex.split(re.sub(r"\$\w+", "1", filled))


def in_containers(containers):
    """The commands of containers of our image."""
    for one in containers:
        words = one.get("command") or one.get("args") or []
        if one["image"].startswith("cnn-repro:") and "entrypoint" not in one:
            yield [str(word) for word in words]


def shipped_commands():
    yield from in_containers(services(SECRETS).values())
    for path in KUBERAY:
        for document in documents(path):
            yield from in_containers(container for _, pod in pods(document) for container in pod["containers"])
            if "entrypoint" in document.get("spec", {}):
                shell, script, *words = shlex.split(document["spec"]["entrypoint"])
                assert (shell, script) == ("sh", f"/opt/repro/docker/{GO_ON.name}")
                yield ["launch", *words]
    for path in (COMPOSE, SLURM, GO_ON, *KUBERAY):
        yield from in_text(path.read_text(encoding="utf-8"))


def test_every_command_that_is_shipped_can_be_given():
    found = [words for words in shipped_commands() if words]
    assert {"node", "launch", "resume"} <= {words[0] for words in found}
    assert len(found) > 10
    assert [said for words in found if (said := refusal(words))] == []


def test_every_command_in_the_page_on_clusters_can_be_given():
    found = list(in_text((ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")))
    assert {"node", "launch", "status", "logs", "cancel", "resume", "verify"} <= {words[0] for words in found}
    assert [said for words in found if (said := refusal(words))] == []


def test_every_command_line_of_the_docs_can_be_given():
    """Those that stand on a line of their own, to be copied."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("repro ")]
    assert {"data", "evaluate", "launch", "node", "run", "status"} <= {words[0] for words in found}
    assert [said for words in found if (said := refusal(words))] == []


@pytest.mark.parametrize(
    "line", ["node --haed", "logs", "launch resnet/nothing", "launch resnet/cifar10_depth --scale huge", "lunch x"]
)
def test_a_command_that_cannot_be_given_is_noticed(line):
    assert refusal(line.split())


# --- Dockerfile --------------------------------------------------------------------------------------------

DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def instructions(name):
    """What follows an instruction's name, of each of them in the Dockerfile."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)


def test_the_dockerfile_satisfies_its_linter():
    assert tool(BIN / "hadolint", DOCKER / "Dockerfile") == ""


def test_the_linter_sees_what_is_wrong(tmp_path):
    for line in ("FROM python", "FROM python:latest", "FROM python:3.11.15\nRUN pip install x\nUSER root"):
        (tmp_path / "Dockerfile").write_text(f"{line}\n", encoding="utf-8")
        assert tool(BIN / "hadolint", tmp_path / "Dockerfile")


def test_both_targets_end_in_the_same_image_without_the_tools_that_made_it():
    ends = {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}
    assert ends["cpu"] == ends["cuda"] == "bare"
    assert ends["bare"] == "${BASE}"
    bare = DOCKERFILE.partition(" AS bare\n")[2].partition("\nFROM ")[0]
    assert "pip install" not in bare
    assert "USER 1000:1000" in bare
    assert not re.search(r"^USER (root|0)", DOCKERFILE, re.MULTILINE)


def test_the_base_is_one_version_of_the_python_that_the_lock_is_made_for():
    assert instructions("ARG")[0].startswith("BASE=python:3.11.")
    assert "--python-version 3.11 " in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_packages_come_by_hash_but_for_the_small_torch():
    commands = [part for line in instructions("RUN") for part in line.split("&&") if "pip install" in part]
    assert ["--require-hashes" in part for part in commands] == [True, True, False]
    assert 'PIP_INDEX_URL="${TORCH_INDEX}"' in commands[-1]
    assert "torch.txt" in commands[-1]


def sent_to_the_builder(path):
    """Whether .dockerignore lets a path through, by its own rule: the last line that fits decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = True
    for line in (line for line in lines if line and not line.startswith("#")):
        rule = line.removeprefix("!")
        if rule == "*" or path == rule or path.startswith(f"{rule}/"):
            sent = line.startswith("!")
    return sent


def test_what_is_copied_is_there_and_sent_to_the_builder():
    copied = [word for line in instructions("COPY") for word in line.split()[:-1] if not word.startswith("--")]
    own = [path for path in copied if not path.startswith("/opt/venv")]
    assert len(own) > 8
    assert [path for path in own if not (ROOT / path).exists()] == []
    assert [path for path in own if not sent_to_the_builder(path)] == []


@pytest.mark.parametrize("path", [".git", "docker/.env", "data", "runs", "mlflow.db", ".venv", "tests", "results"])
def test_secrets_and_what_the_image_does_not_need_stay_here(path):
    assert not sent_to_the_builder(path)


# --- the image's lock --------------------------------------------------------------------------------------

PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)(?: ; (.*?))? \\$", re.MULTILINE)


def pins(path):
    """{(name, marker): version} of a lock file."""
    return {(name, marker): version for name, version, marker in PIN.findall(path.read_text(encoding="utf-8"))}


def test_the_image_has_the_versions_that_are_tested():
    image, tested = pins(DOCKER / "requirements.lock"), pins(ROOT / "requirements.lock")
    assert len(image) > 100
    assert {key: version for key, version in image.items() if tested.get(key, version) != version} == {}
    assert {name for name, _ in image} - {name for name, _ in tested} == set()


def test_the_image_has_what_the_project_needs_and_no_tools_of_its_developers():
    image = {name for name, _ in pins(DOCKER / "requirements.lock")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    server = (DOCKER / "server.in").read_text(encoding="utf-8").splitlines()
    needed = [line for line in [*project["dependencies"], *server] if line and not line.startswith("#")]
    assert {re.split(r"[\[>=<]", line)[0].lower() for line in needed} <= image
    assert not image & {"pytest", "mypy", "ruff", "moto", "timm", "hypothesis"}


def test_every_package_of_the_lock_has_hashes_and_no_address():
    text = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    entries = without_torch.entries(text)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


def test_the_small_torch_is_the_same_version_and_the_rest_lacks_cuda_alone():
    text = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    versions = {name: version for (name, _), version in pins(DOCKER / "requirements.lock").items()}
    assert without_torch.torch(text).splitlines() == [
        f"{name}=={versions[name]}" for name in ("torch", "torchvision")
    ]
    rest = {found[0] for found in PIN.findall(without_torch.without_torch(text))}
    gone = set(versions) - rest
    assert {"torch", "torchvision", "triton"} <= gone
    assert {name for name in gone if not name.startswith(("nvidia-", "cuda-"))} == {
        "torch",
        "torchvision",
        "triton",
    }
    assert {"numpy", "torchmetrics", "pytorch-lightning", "ray", "sympy"} <= rest


def test_nothing_but_torch_needs_what_the_small_torch_lacks():
    """The comments of the lock say who needs a package."""
    text = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    for entry in without_torch.entries(text):
        if without_torch.CUDA.match(entry) and not entry.startswith("torch"):
            users = set(re.findall(r"^ {4}# +(?:via )?([a-z][a-z0-9-]+)$", entry, re.MULTILINE)) - {"via"}
            assert users, entry
            assert all(without_torch.CUDA.match(f"{user}==") for user in users), entry


# --- compose -----------------------------------------------------------------------------------------------


def wrongs(found):
    """What is against our rules in a compose file's services, a sentence each."""
    for name, one in found.items():
        ours = "build" in one
        wrong = lambda words, name=name: f"{name}: {words}"  # noqa: E731 - a line each below
        if not ours and not re.search(r":v?\d+\.\d+", one["image"]):
            yield wrong(f"image {one['image']} is not pinned")
        for port in one.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield wrong(f"port {port} is published beyond loopback")
        if one.get("privileged") or one.get("network_mode") == "host" or "docker.sock" in str(one.get("volumes")):
            yield wrong("has the machine in its hands")
        if one.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in one.get("security_opt", []):
            yield wrong("may gain rights")
        words = [one.get("command"), one.get("entrypoint"), one.get("healthcheck", {}).get("test")]
        if any(secret in str(words) for secret in SECRETS.values()):
            yield wrong("a secret is in a command, which `ps` shows")
        limits = one.get("deploy", {}).get("resources", {}).get("limits", {})
        if not {"cpus", "memory"} <= set(limits):
            yield wrong("has no limits")
        if not ours and "healthcheck" not in one:
            yield wrong("has no health check")
        command = [str(word) for word in one.get("command", [])]
        if "--grace" in command:
            grace = float(command[command.index("--grace") + 1])
            if seconds(one.get("stop_grace_period", "10s")) < grace + 20:
                yield wrong("is killed before its grace is over")
            if not one.get("shm_size"):
                yield wrong("has no room for Ray's object store")
        for other, how in one.get("depends_on", {}).items():
            if other not in found:
                yield wrong(f"waits for {other}, which is not there")
            elif how["condition"] == "service_healthy" and found[other].get("healthcheck", {}).get("disable"):
                yield wrong(f"waits for the health of {other}, which tells of none")


def seconds(text):
    """Of a period such as 150s."""
    return float(re.fullmatch(r"(\d+)s", text)[1])


def test_the_compose_file_fits_the_compose_specification():
    assert tool(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE) == ""


def test_the_specification_sees_what_is_wrong(tmp_path):
    broken = tmp_path / "compose.yaml"
    broken.write_text(TEXT.replace("healthcheck:", "heathcheck:", 1), encoding="utf-8")
    assert "heathcheck" in tool(
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", broken
    )


def test_the_compose_file_keeps_our_rules():
    found = services(SECRETS)
    assert list(wrongs(found)) == []
    assert {"db", "s3", "buckets", "mlflow", "head", "worker", "worker-gpu"} == set(found)
    published = sorted(str(port) for one in found.values() for port in one.get("ports", []))
    assert published == ["127.0.0.1:5000:5000", "127.0.0.1:7070:7070", "127.0.0.1:8265:8265"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"127.0.0.1:5000:5000"', '"5000:5000"', "mlflow: port 5000:5000 is published beyond loopback"),
        ("postgres:17.10-bookworm", "postgres:latest", "db: image postgres:latest is not pinned"),
        ("versitygw:v1.8.0", "versitygw", "s3: image versity/versitygw is not pinned"),
        ("stop_grace_period: 150s", "stop_grace_period: 100s", "head: is killed before its grace is over"),
        ("  cap_drop: [ALL]\n", "  cap_drop: [NET_RAW]\n", "head: may gain rights"),
        ("--workers=2", "--workers=${MLFLOW_SECRET:?x}", "mlflow: a secret is in a command, which `ps` shows"),
        ("{s3: {condition", "{s4: {condition", "buckets: waits for s4, which is not there"),
        ("{mlflow: {condition: service_healthy}}", "{buckets: {condition: service_healthy}}", "tells of none"),
        ("shm_size: 2gb", "mem_swappiness: 0", "worker: has no room for Ray's object store"),
        ('deploy: {resources: {limits: {cpus: "2", memory: 1g}}}', "tty: false", "db: has no limits"),
    ],
)
def test_what_breaks_a_rule_is_noticed(old, new, words):
    assert old in TEXT
    said = list(wrongs(services(SECRETS, TEXT.replace(old, new))))
    assert any(words in one for one in said), said


def test_nothing_starts_while_a_password_is_missing():
    asked = variables(TEXT)
    assert all(asked.values())
    example = dotenv((DOCKER / ".env.example").read_text(encoding="utf-8"))
    assert set(asked) == set(example)
    assert set(example.values()) == {""}
    for name in asked:
        with pytest.raises(ValueError, match=rf"{name}: set {name} in docker/.env"):
            interpolated(TEXT, SECRETS | {name: ""})


def test_a_password_has_no_default():
    assert not re.search(r"\$\{\w+:?-", TEXT)
    assert variables("a: ${A}\nb: ${B:?why}\nc: ${B}") == {"A": False, "B": False}


def test_the_passwords_file_stays_out_of_git():
    done = subprocess.run(["git", "check-ignore", "-q", "docker/.env"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_only_those_who_need_a_password_have_it():
    found = services(SECRETS)
    holders = {
        name: {service for service, one in found.items() if value in one.get("environment", {}).values()}
        for name, value in SECRETS.items()
    }
    nodes = {"head", "worker", "worker-gpu"}
    assert holders == {
        "POSTGRES_PASSWORD": {"db", "mlflow"},
        "MLFLOW_PASSWORD": {"mlflow", *nodes},
        "MLFLOW_SECRET": {"mlflow"},
        "S3_ACCESS_KEY": {"s3", "buckets", "mlflow", *nodes},
        "S3_SECRET_KEY": {"s3", "buckets", "mlflow", *nodes},
        "TORCH_INDEX": set(),  # for building alone
    }


def test_nobody_but_mlflow_reaches_the_database():
    whole = yaml.safe_load(interpolated(TEXT, SECRETS))
    assert whole["networks"]["database"]["internal"] is True
    assert {name for name, one in whole["services"].items() if "database" in one.get("networks", [])} == {
        "db",
        "mlflow",
    }
    assert whole["services"]["db"]["networks"] == ["database"]


# --- Kubernetes --------------------------------------------------------------------------------------------


def documents(path):
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def cluster_of(document):
    """The RayCluster's specification in a document, {} where there is none."""
    spec = document["spec"] if document["kind"] in ("RayCluster", "RayJob") else {}
    return spec.get("rayClusterSpec", spec)


def pods(document):
    """(group, pod's specification) of a RayCluster or RayJob."""
    spec = cluster_of(document)
    groups = [("head", spec["headGroupSpec"])] if spec else []
    groups += [(group["groupName"], group) for group in spec.get("workerGroupSpecs", [])]
    return [(name, group["template"]["spec"]) for name, group in groups]


OURS = [pytest.param(path, d, id=f"{path.stem}:{d['kind']}") for path in KUBERAY for d in documents(path)]
RAY = [param for param in OURS if param.values[1]["kind"].startswith("Ray")]
FIELDS = {  # of KubeRay's API v1, what we use: it refuses others
    "RayJob": {
        "entrypoint", "runtimeEnvYAML", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished", "submitterConfig", "rayClusterSpec",
    },
    "RayCluster": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}  # fmt: skip


def as_kubernetes_reads(document):
    """Documents that Kubernetes' own schemas know: itself, or a Pod of each group."""
    if not cluster_of(document):
        return [document]
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        for name, pod in pods(document)
    ]


@pytest.mark.parametrize(("path", "document"), OURS)
def test_a_manifest_fits_the_schemas_of_kubernetes(path, document):
    for one in as_kubernetes_reads(document):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_the_schemas_see_what_is_wrong():
    pod = copy.deepcopy(as_kubernetes_reads(RAY[0].values[1])[0])
    pod["spec"]["terminationGracePeriod"] = 5
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(("path", "document"), RAY)
def test_a_ray_resource_has_the_fields_that_kuberay_knows(path, document):
    assert document["apiVersion"] == "ray.io/v1"
    assert set(document["spec"]) <= FIELDS[document["kind"]]
    spec = cluster_of(document)
    assert set(spec) == FIELDS["RayCluster"]
    assert set(spec["headGroupSpec"]) == FIELDS["head"]
    for group in spec["workerGroupSpecs"]:
        assert set(group) == FIELDS["worker"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(("path", "document"), RAY)
def test_a_pod_may_do_no_more_than_it_needs(path, document):
    for _, pod in pods(document):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize(("path", "document"), RAY)
def test_a_pod_that_is_taken_away_has_time_to_write_checkpoints(path, document):
    """KubeRay's own command would end at once; ours is told by SIGTERM, and has longer than it needs."""
    assert document["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    for _, pod in pods(document):
        args = [str(word) for word in pod["containers"][0]["args"]]
        assert args[0] == "node"
        assert float(args[args.index("--grace") + 1]) + 20 <= pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(("path", "document"), RAY)
def test_the_token_is_a_file_of_a_secret_and_no_secret_is_written_here(path, document):
    spec = cluster_of(document)
    assert spec["authOptions"] == {"mode": "token", "secretName": "repro-token"}
    assert spec["rayVersion"] == pins(ROOT / "requirements.lock")["ray", ""]
    for _, pod in pods(document):
        container = pod["containers"][0]
        plain = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        assert plain == {"REPRO_HOME": "/home/repro/store", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray/auth_token"}
        secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "token")
        assert secret == {"secretName": "repro-token", "defaultMode": 0o440}
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
        assert all("secretRef" in source for source in container["envFrom"])
    assert "Secret" not in {d["kind"] for d in documents(path)}


@pytest.mark.parametrize(("path", "document"), RAY)
def test_all_nodes_see_the_home_and_it_is_one_that_they_all_can_write(path, document):
    claim = next(param.values[1] for param in OURS if param.values[1]["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for _, pod in pods(document):
        volume = next(volume for volume in pod["volumes"] if volume["name"] == "home")
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize(("path", "document"), RAY)
def test_kuberay_asks_for_health_as_the_image_does(path, document):
    """Its own probes ask at port 52365, where our nodes have no agent: it would end every pod."""
    (line,) = instructions("HEALTHCHECK")
    command = json.loads(line.partition("CMD ")[2])
    for _, pod in pods(document):
        for probe in ("livenessProbe", "readinessProbe"):
            assert pod["containers"][0][probe]["exec"]["command"] == command
    assert command[1].removeprefix("/opt/repro/") in [
        word for line in instructions("COPY") for word in line.split()
    ]


def test_a_container_without_a_node_is_not_healthy():
    """Of a node that runs: test_stack.py."""
    said = tool(sys.executable, DOCKER / "healthy.py", os.getpid())
    assert "Ray has not begun" in said


def test_workers_get_gpus_and_stand_where_gpus_are():
    for param in RAY:
        worker = dict(pods(param.values[1]))["gpu"]
        assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] >= 1
        assert worker["containers"][0]["image"].endswith("-cuda")
        assert "nvidia.com/gpu.present" in worker["nodeSelector"]
        assert "nvidia.com/gpu" in {toleration["key"] for toleration in worker["tolerations"]}


def test_nobody_outside_the_namespace_reaches_the_head_but_kuberay_its_dashboard():
    policy = next(param.values[1] for param in OURS if param.values[1]["kind"] == "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_a_job_is_tried_again_and_has_an_end():
    job = next(param.values[1] for param in RAY if param.values[1]["kind"] == "RayJob")["spec"]
    assert job["backoffLimit"] > 0
    assert job["activeDeadlineSeconds"] > 0
    assert job["shutdownAfterJobFinishes"] is True
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": {"REPRO_INSIDE": "1"}}


def test_a_job_tried_again_goes_on_where_the_first_try_has_written_a_launch_down(tmp_path):
    """The script in its turn on three clusters of one job, with a stand-in for our command."""
    home, programs, noted = tmp_path / "home", tmp_path / "bin", tmp_path / "noted"
    programs.mkdir()
    (programs / "repro").write_text('#!/bin/sh\necho "$*" >> "$NOTED"\nexit "$CODE"\n', encoding="utf-8")
    (programs / "repro").chmod(0o755)
    (home / "launches").mkdir(parents=True)
    earlier = home / "launches" / "earlier.json"  # somebody else's, long ago
    earlier.touch()
    os.utime(earlier, (0, 0))
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTED": str(noted), "REPRO_HOME": str(home)}

    def attempt(cluster, code):
        told = env | {"RAY_CLUSTER_NAME": cluster, "CODE": str(code)}
        return subprocess.run(["sh", str(GO_ON), "a/b", "--max-gpu-hours", "1"], env=told, check=False).returncode

    launch = "launch a/b --max-gpu-hours 1"
    assert attempt("repro-launch-x7-aaaaa", 2) == 2  # ended before it wrote anything down
    assert attempt("repro-launch-x7-bbbbb", 1) == 1
    ours = home / "launches" / "ours.json"
    ours.touch()
    os.utime(ours, (time.time() + 5, time.time() + 5))
    assert attempt("repro-launch-x7-ccccc", 0) == 0
    assert noted.read_text(encoding="utf-8").splitlines() == [launch, launch, "resume"]
    os.utime(ours, (time.time() - 5, time.time() - 5))
    attempt("repro-launch-y8-ddddd", 0)  # another job
    assert noted.read_text(encoding="utf-8").splitlines()[-1] == launch


def test_a_jobs_head_knows_the_name_that_its_tries_share():
    job = next(param.values[1] for param in RAY if param.values[1]["kind"] == "RayJob")
    head = dict(pods(job))["head"]["containers"][0]
    label = {"fieldRef": {"fieldPath": "metadata.labels['ray.io/cluster']"}}
    assert {"name": "RAY_CLUSTER_NAME", "valueFrom": label} in head["env"]


# --- scripts -----------------------------------------------------------------------------------------------

SCRIPTS = [SLURM, GO_ON, DOCKER / "repro"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_satisfies_shell_and_linter(path):
    assert os.access(path, os.X_OK) or path == SLURM
    assert tool("bash", "-n", path) == ""
    assert tool(BIN / "shellcheck", path) == ""


def test_the_linter_of_scripts_sees_what_is_wrong(tmp_path):
    (tmp_path / "x.sh").write_text("#!/bin/bash\nrm -rf $1/x\n", encoding="utf-8")
    assert "SC2086" in tool(BIN / "shellcheck", tmp_path / "x.sh")


# --- the Slurm script, carried out by stand-ins of Slurm's commands ------------------------------------------

# Each notes what it was asked. A node runs until it is told to end; the head is ready at once.
STAND_INS = {
    "scontrol": """case $1 in show) printf 'n1\\nn2\\nn3\\n' ;; *) echo "scontrol $*" >>"$NOTES" ;; esac""",
    "hostname": "echo n1",
    "getent": "printf '127.0.1.1 STREAM n1\\n10.0.0.1 STREAM n1\\n'",
    "srun": """while [[ $1 == --* ]]; do echo "srun $1" >>"$NOTES"; shift; done; exec "$@" """,
    "repro": """echo "repro $*" >>"$NOTES"
case $1 in
node) trap 'echo "node ends" >>"$NOTES"; rm "$PLACE/node-$$"; exit 0' TERM
    echo $$ >"$PLACE/node-$$"
    if [ "$2" = --head ]; then
        [ -z "${HEAD_FAILS:-}" ] || { rm "$PLACE/node-$$"; exit 1; }
        mkdir -p "$REPRO_HOME/cluster"; sleep 0.05; echo '{}' >"$REPRO_HOME/cluster/node.json"
    fi
    while :; do sleep 0.05; done ;;
*) until [ "$(ls "$PLACE"/node-* 2>/dev/null | wc -l)" = 2 ]; do sleep 0.05; done
    [ -z "${LASTS:-}" ] || { trap 'exit 130' TERM; while :; do sleep 0.05; done; }
    exit "${ENDS:-0}" ;;
esac""",
}


@pytest.fixture
def slurm(tmp_path):
    """Start the script as Slurm would: (process, its notes so far)."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in STAND_INS.items():
        (place / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (place / name).chmod(0o755)
    notes = tmp_path / "notes"
    notes.touch()
    started = []

    def start(**variables):
        environment = {
            "PATH": f"{place}:/usr/bin:/bin",
            "REPRO_HOME": str(tmp_path / "home"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "NOTES": str(notes),
            "PLACE": str(tmp_path),
        }
        words = ["bash", str(SLURM), "resnet/cifar10_depth", "--scale", "smoke"]
        process = subprocess.Popen(words, env=environment | variables, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    def said():
        return notes.read_text(encoding="utf-8").splitlines()

    yield start, said
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()
    for path in tmp_path.glob("node-*"):  # a stand-in that was not told to end
        os.kill(int(path.read_text(encoding="utf-8")), signal.SIGKILL)


def until(condition):
    """Wait for it, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_slurm_job_starts_all_nodes_launches_and_ends_them(slurm):
    start, said = slurm
    assert start().wait(20) == 0
    notes = said()
    nodes = [note for note in notes if note.startswith("repro node")]
    assert nodes[0] == "repro node --head --listen 10.0.0.1 --grace 90"
    assert nodes[1] == "repro node --address 10.0.0.1:6379 --listen 10.0.0.1 --grace 90"
    assert {"srun --nodelist=n1", "srun --nodes=2", "srun --exclude=n1"} <= set(notes)
    assert "repro launch resnet/cifar10_depth --scale smoke" in notes
    assert notes.count("node ends") == 2
    assert not any(note.startswith("scontrol requeue") for note in notes)


def test_a_slurm_job_that_is_given_notice_ends_its_nodes_and_is_queued_again(slurm, tmp_path):
    start, said = slurm
    process = start(LASTS="1")
    until(lambda: len([*tmp_path.glob("node-*")]) == 2 and any(note.startswith("repro launch") for note in said()))
    process.terminate()  # what --signal=B:TERM and a preemption do
    assert process.wait(20) == 0
    notes = said()
    assert notes.count("node ends") == 2
    assert notes[-1] == "scontrol requeue 7"


def test_a_slurm_job_that_was_queued_again_resumes(slurm):
    start, said = slurm
    assert start(SLURM_RESTART_COUNT="1").wait(20) == 0
    assert "repro resume" in said()
    assert not any(note.startswith("repro launch") for note in said())


def test_a_slurm_job_fails_as_its_launch_does(slurm):
    start, said = slurm
    assert start(ENDS="1").wait(20) == 1
    assert said().count("node ends") == 2


def test_a_slurm_job_whose_head_does_not_come_up_says_so_and_launches_nothing(slurm):
    start, said = slurm
    process = start(HEAD_FAILS="1")
    assert process.wait(20) == 1
    assert "Ray's head on n1 did not come up" in process.stderr.read()
    assert not any("launch" in note for note in said())


def test_a_slurm_job_without_a_home_says_what_is_missing(slurm):
    start, _ = slurm
    process = start(REPRO_HOME="")
    assert process.wait(20) != 0
    assert "set REPRO_HOME to a folder that all nodes see" in process.stderr.read()


def test_slurm_gives_longer_notice_than_a_node_takes():
    text = SLURM.read_text(encoding="utf-8")
    assert (
        int(re.search(r"--signal=B:TERM@(\d+)", text)[1])
        >= int(re.search(r"^GRACE=(\d+)", text, re.MULTILINE)[1]) + 20
    )
    assert "#SBATCH --requeue" in text
    assert "umask 077" in text
