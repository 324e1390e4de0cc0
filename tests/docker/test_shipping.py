"""The files of docker/, checked by the validators of their tools or by rules of our own.

For each rule a test shows that a violation is detected.
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
from itertools import takewhile
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from pipeline.cli import main
from pipeline.declare.load import experiment_names, load_experiment
from tests.support.composed import COMPOSE, ROOT, dotenv, interpolate, services, variables
from tests.support.kuberay import VERSIONS, fields_with_rules, schema

DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
SECRETS = {name: f"{name.lower()}-value" for name in dotenv((DOCKER / ".env.example").read_text(encoding="utf-8"))}
TEXT = COMPOSE.read_text(encoding="utf-8")
SLURM = DOCKER / "slurm" / "repro.sbatch"
LAUNCH_OR_RESUME = DOCKER / "launch_or_resume.sh"
KUBERAY = sorted((DOCKER / "kuberay").glob("*.yaml"))
KUBERNETES = "1.33"  # version of the schemas


def tool_errors(*argv):
    """Run a tool of the test environment; return its output if it fails, else ""."""
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def load_script(path):
    """Return a script of docker/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


without_torch = load_script(DOCKER / "without_torch.py")


# --- commands ---------------------------------------------------------------------------


TAKE_PAPERS = ("report", "figures")  # commands
SHELL_OPERATORS = (">", ">>", "|", "&&")  # end a command


def command_error(argv):
    """Return why `repro ARGV` is not a valid command, "" if it is; nothing is executed."""
    words = list(takewhile(lambda word: word not in SHELL_OPERATORS, argv))
    command, name, rest = repro_commands(), "repro", words
    try:
        while hasattr(command, "commands"):
            name = rest.pop(0)
            command = command.commands[name]
        with command.make_context(name, rest) as context:
            arguments = context.params
    except KeyError:
        return f"no command repro {name}"
    except Exception as error:  # noqa: BLE001 - any error of the command parser
        return f"repro {shlex.join(argv)}: {getattr(error, 'message', '') or error!r}"
    experiments = arguments.get("experiments") or arguments.get("experiment") or ()
    for experiment in [experiments] if isinstance(experiments, str) else experiments:
        papers = {known.partition("/")[0] for known in experiment_names()} if name in TAKE_PAPERS else ()
        if experiment not in experiment_names() and experiment not in papers:
            return f"no experiment {experiment}"
        if experiment not in papers and arguments.get("scale") not in (None, *load_experiment(experiment).scales):
            return f"{experiment} has no scale {arguments['scale']}"
    return ""


@cache
def repro_commands():
    """Return the command line interface of `repro`."""
    return typer.main.get_command(main.app)


COMMAND = re.compile(
    r"(?:^|[\s`'])repro ((?:node|launch|status|logs|cancel|resume|run|verify|leaderboard)\b[^`'&#;|]*)"
)


def commands_in_text(text):
    """Yield the arguments of the repro commands in comments, scripts and pages; shell variables are replaced."""
    for line in text.replace("\\\n", " ").splitlines():
        for found in COMMAND.findall(line):
            filled = found.replace('"$@"', "resnet/cifar10_depth").replace('"${cpus[@]}"', "--cpus 1")
            yield shlex.split(re.sub(r"\$\w+", "1", filled))


def commands_of_containers(containers):
    """Yield the arguments of containers that run our image."""
    for container in containers:
        argv = container.get("command") or container.get("args") or []
        if container["image"].startswith("cnn-repro:") and "entrypoint" not in container:
            yield [str(argument) for argument in argv]


def shipped_commands():
    """Yield the arguments of all repro commands in docker/."""
    yield from commands_of_containers(services(SECRETS).values())
    for path in KUBERAY:
        for document in documents(path):
            yield from commands_of_containers(
                container for _, pod in pods(document) for container in pod["containers"]
            )
            if "entrypoint" in document.get("spec", {}):
                shell, script, *argv = shlex.split(document["spec"]["entrypoint"])
                assert (shell, script) == ("sh", f"/opt/repro/docker/{LAUNCH_OR_RESUME.name}")
                yield ["launch", *argv]
    for path in (COMPOSE, SLURM, LAUNCH_OR_RESUME, *KUBERAY):
        yield from commands_in_text(path.read_text(encoding="utf-8"))


def test_every_command_in_docker_files_is_valid():
    found = [argv for argv in shipped_commands() if argv]
    assert {"node", "launch", "resume"} <= {argv[0] for argv in found}
    assert len(found) > 10
    assert [error for argv in found if (error := command_error(argv))] == []


def test_every_command_in_the_cluster_page_is_valid():
    found = list(commands_in_text((ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")))
    assert {"node", "launch", "status", "logs", "cancel", "resume", "verify"} <= {argv[0] for argv in found}
    assert [error for argv in found if (error := command_error(argv))] == []


def test_every_command_line_of_the_docs_is_valid():
    """Command lines are the lines that begin with `repro`."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("repro ")]
    assert {"data", "evaluate", "launch", "node", "run", "status"} <= {argv[0] for argv in found}
    assert [error for argv in found if (error := command_error(argv))] == []


@pytest.mark.parametrize(
    "line", ["node --haed", "logs", "launch resnet/nothing", "launch resnet/cifar10_depth --scale huge", "lunch x"]
)
def test_an_invalid_command_is_detected(line):
    assert command_error(line.split())


# --- Dockerfile --------------------------------------------------------------------------------------------

DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def instructions(name):
    """Return the arguments of each instruction of this name in the Dockerfile."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)


def test_the_dockerfile_passes_its_linter():
    assert tool_errors(BIN / "hadolint", DOCKER / "Dockerfile") == ""


def test_the_linter_detects_errors(tmp_path):
    for line in ("FROM python", "FROM python:latest", "FROM python:3.11.15\nRUN pip install x\nUSER root"):
        (tmp_path / "Dockerfile").write_text(f"{line}\n", encoding="utf-8")
        assert tool_errors(BIN / "hadolint", tmp_path / "Dockerfile")


def stages(text):
    """Return (base, instructions) of each stage by name, in order."""
    found = re.split(r"^FROM (\S+) AS (\S+)$", text, flags=re.MULTILINE)[1:]
    return {
        name: (base, content) for base, name, content in zip(found[::3], found[1::3], found[2::3], strict=True)
    }


def layers(text, target):
    """Return the instructions that make the layers of a target, without those of its base image."""
    base, content = stages(text)[target]
    own = re.findall(r"^((?:RUN|COPY|USER) .+)$", content, re.MULTILINE)
    return [*(layers(text, base) if base in stages(text) else []), *own]


def layer_violations(text):
    """Yield a message for each violation of our rules in the layers of the two targets."""
    for target in ("cpu", "cuda"):
        found = layers(text, target)
        installing = [line for line in found if "pip install" in line]
        copying = [line for line in found if line.startswith("COPY")]
        if len(installing) != 1 or any("/opt/venv" in line for line in copying):
            yield f"{target}: the environment is stored more than once"
        if not all(f"--mount=type=bind,source={path}" in installing[0] for path in ["docker/requirements.lock"]):
            yield f"{target}: the lock stays in the image"
        if not all("--no-cache-dir" in part for part in installing[0].split("&&") if "pip install" in part):
            yield f"{target}: pip's cache stays in the image"
        if "pip uninstall --yes pip" not in installing[0]:
            yield f"{target}: pip stays in the image"
        if found[-2:] != ["COPY --from=code /image /", "USER 1000:1000"] or copying != found[-2:-1]:
            yield f"{target}: the code is not the last layer, or not the only copied one"


def test_the_environment_is_stored_once_and_the_code_is_the_last_layer():
    assert list(layer_violations(DOCKERFILE)) == []
    assert {base for base, _ in (stages(DOCKERFILE)[name] for name in ("system", "code"))} == {"${BASE}"}
    assert not re.search(r"^USER (root|0)", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "FROM environment-cpu AS cpu\n",
            "FROM system AS cpu\nCOPY --from=environment-cpu /opt/venv /opt/venv\n",
            "more",
        ),
        (
            "COPY --from=code /image /\n",
            "COPY pipeline /opt/repro/pipeline\nCOPY --from=code /image /\n",
            "not the last",
        ),
        ("    && pip uninstall --yes pip", "", "pip stays"),
        ("pip install --no-cache-dir", "pip install", "cache stays"),
        ("--mount=type=bind,source=docker/requirements.lock,target=/build/requirements.lock", "", "lock stays"),
    ],
)
def test_a_violation_of_the_layers_is_detected(old, new, message):
    assert old in DOCKERFILE
    assert any(message in violation for violation in layer_violations(DOCKERFILE.replace(old, new)))


def test_the_base_image_has_the_python_version_of_the_lock():
    assert instructions("ARG")[0].startswith("BASE=python:3.11.")
    assert "--python-version 3.11 " in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_packages_are_installed_by_hash_except_the_cpu_torch():
    commands = [part for line in instructions("RUN") for part in line.split("&&") if "pip install" in part]
    by_hash = ["--require-hashes" in part for part in commands]
    assert by_hash == [True, True, True, False]  # CUDA; CPU from PyPI; CPU: all but torch, and torch
    assert 'PIP_INDEX_URL="${TORCH_INDEX}"' in commands[-1]
    assert "torch.txt" in commands[-1]


def in_build_context(path):
    """Return whether .dockerignore includes a path: its last matching line decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    included = True
    for line in (line for line in lines if line and not line.startswith("#")):
        rule = line.removeprefix("!")
        if rule == "*" or path == rule or path.startswith(f"{rule}/"):
            included = line.startswith("!")
    return included


def test_what_is_copied_is_there_and_in_build_context():
    copied = [word for line in instructions("COPY") for word in line.split()[:-1] if not word.startswith("--")]
    own = [path for path in copied if path != "/image"]
    own += [path for line in instructions("RUN") for path in re.findall(r"source=([^, ]+)", line)]
    assert len(own) > 8
    assert [path for path in own if not (ROOT / path).exists()] == []
    assert [path for path in own if not in_build_context(path)] == []


@pytest.mark.parametrize("path", [".git", "docker/.env", "data", "runs", "mlflow.db", ".venv", "tests", "results"])
def test_secrets_and_unneeded_files_are_not_in_the_build_context(path):
    assert not in_build_context(path)


# --- the image's lock --------------------------------------------------------------------------------------

PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)(?: ; (.*?))? \\$", re.MULTILINE)


def pins(path):
    """Return the versions of a lock file by (name, marker)."""
    return {(name, marker): version for name, version, marker in PIN.findall(path.read_text(encoding="utf-8"))}


def test_the_image_has_the_tested_versions():
    image, tested = pins(DOCKER / "requirements.lock"), pins(ROOT / "requirements.lock")
    assert len(image) > 100
    assert {key: version for key, version in image.items() if tested.get(key, version) != version} == {}
    assert {name for name, _ in image} - {name for name, _ in tested} == set()


def test_the_image_has_the_dependencies_but_no_development_tools():
    image = {name for name, _ in pins(DOCKER / "requirements.lock")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    server = (DOCKER / "server.in").read_text(encoding="utf-8").splitlines()
    needed = [line for line in [*project["dependencies"], *server] if line and not line.startswith("#")]
    assert {re.split(r"[\[>=<]", line)[0].lower() for line in needed} <= image
    assert not image & {"pytest", "mypy", "ruff", "moto", "timm", "hypothesis"}


def test_every_package_of_the_lock_has_hashes_and_no_url():
    text = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    entries = without_torch.entries(text)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


def test_the_cpu_image_has_the_same_torch_and_lacks_only_cuda_packages():
    text = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    versions = {name: version for (name, _), version in pins(DOCKER / "requirements.lock").items()}
    assert without_torch.torch(text).splitlines() == [
        f"{name}=={versions[name]}" for name in ("torch", "torchvision")
    ]
    rest = {found[0] for found in PIN.findall(without_torch.without_torch(text))}
    removed = set(versions) - rest
    assert {"torch", "torchvision", "triton"} <= removed
    assert {name for name in removed if not name.startswith(("nvidia-", "cuda-"))} == {
        "torch",
        "torchvision",
        "triton",
    }
    assert {"numpy", "torchmetrics", "pytorch-lightning", "ray", "sympy"} <= rest


def test_the_cpu_image_from_pypi_lacks_only_triton():
    text = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    kept = without_torch.entries(without_torch.without_triton(text))
    (removed,) = set(without_torch.entries(text)) - set(kept)
    assert removed.startswith("triton==")
    assert len(kept) == len(without_torch.entries(text)) - 1


def test_only_torch_needs_the_removed_packages():
    """The comments of the lock name the packages that need each package."""
    text = (DOCKER / "requirements.lock").read_text(encoding="utf-8")
    for entry in without_torch.entries(text):
        if without_torch.CUDA.match(entry) and not entry.startswith("torch"):
            users = set(re.findall(r"^ {4}# +(?:via )?([a-z][a-z0-9-]+)$", entry, re.MULTILINE)) - {"via"}
            assert users, entry
            assert all(without_torch.CUDA.match(f"{user}==") for user in users), entry


# --- compose -----------------------------------------------------------------------------------------------


def violations(found):
    """Yield a message for each violation of our rules in the services of a compose file."""
    for name, service in found.items():
        for message in service_violations(service, found):
            yield f"{name}: {message}"


def service_violations(service, found):
    """Yield a message for each violation of our rules in one service."""
    is_ours = "build" in service
    if not is_ours and not re.search(r":v?\d+\.\d+", service["image"]):
        yield f"image {service['image']} is not pinned"
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"port {port} is published beyond loopback"
    uses_socket = "docker.sock" in str(service.get("volumes"))
    if service.get("privileged") or service.get("network_mode") == "host" or uses_socket:
        yield "controls the machine"
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
        yield "may gain privileges"
    commands = [service.get("command"), service.get("entrypoint"), service.get("healthcheck", {}).get("test")]
    if any(secret in str(commands) for secret in SECRETS.values()):
        yield "has a secret in a command, which `ps` shows"
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if not {"cpus", "memory"} <= set(limits):
        yield "has no limits"
    if not is_ours and "healthcheck" not in service:
        yield "has no health check"
    command = [str(argument) for argument in service.get("command", [])]
    if "--grace" in command:
        grace = float(command[command.index("--grace") + 1])
        if seconds(service.get("stop_grace_period", "10s")) < grace + 20:
            yield "is killed before its grace period ends"
        if not service.get("shm_size"):
            yield "has no memory for Ray's object store"
    for other, condition in service.get("depends_on", {}).items():
        if other not in found:
            yield f"waits for {other}, which does not exist"
        elif condition["condition"] == "service_healthy" and found[other].get("healthcheck", {}).get("disable"):
            yield f"waits for the health of {other}, which has no health check"


def seconds(text):
    """Return the seconds of a period such as 150s."""
    return float(re.fullmatch(r"(\d+)s", text)[1])


def test_the_compose_file_fits_the_compose_specification():
    assert (
        tool_errors(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
        == ""
    )


def test_the_compose_specification_detects_errors(tmp_path):
    broken = tmp_path / "compose.yaml"
    broken.write_text(TEXT.replace("healthcheck:", "heathcheck:", 1), encoding="utf-8")
    assert "heathcheck" in tool_errors(
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", broken
    )


def test_the_compose_file_follows_our_rules():
    found = services(SECRETS)
    assert list(violations(found)) == []
    assert {"db", "s3", "buckets", "mlflow", "head", "worker", "worker-gpu"} == set(found)
    published = sorted(str(port) for one in found.values() for port in one.get("ports", []))
    assert published == ["127.0.0.1:5000:5000", "127.0.0.1:7070:7070", "127.0.0.1:8265:8265"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"127.0.0.1:5000:5000"', '"5000:5000"', "mlflow: port 5000:5000 is published beyond loopback"),
        ("postgres:17.10-bookworm", "postgres:latest", "db: image postgres:latest is not pinned"),
        ("versitygw:v1.8.0", "versitygw", "s3: image versity/versitygw is not pinned"),
        ("stop_grace_period: 150s", "stop_grace_period: 100s", "head: is killed before its grace period ends"),
        ("  cap_drop: [ALL]\n", "  cap_drop: [NET_RAW]\n", "head: may gain privileges"),
        ("--workers=2", "--workers=${MLFLOW_SECRET:?x}", "mlflow: has a secret in a command, which `ps` shows"),
        ("{s3: {condition", "{s4: {condition", "buckets: waits for s4, which does not exist"),
        (
            "{mlflow: {condition: service_healthy}}",
            "{buckets: {condition: service_healthy}}",
            "which has no health check",
        ),
        ("shm_size: 2gb", "mem_swappiness: 0", "worker: has no memory for Ray's object store"),
        ('deploy: {resources: {limits: {cpus: "2", memory: 1g}}}', "tty: false", "db: has no limits"),
    ],
)
def test_a_violation_of_a_rule_is_detected(old, new, message):
    assert old in TEXT
    found = list(violations(services(SECRETS, TEXT.replace(old, new))))
    assert any(message in violation for violation in found), found


def test_compose_refuses_to_start_without_a_password():
    required = variables(TEXT)
    assert all(required.values())
    example = dotenv((DOCKER / ".env.example").read_text(encoding="utf-8"))
    assert set(required) == set(example)
    assert set(example.values()) == {""}
    for name in required:
        with pytest.raises(ValueError, match=rf"{name}: set {name} in docker/.env"):
            interpolate(TEXT, SECRETS | {name: ""})


def test_a_password_has_no_default():
    assert not re.search(r"\$\{\w+:?-", TEXT)
    assert variables("a: ${A}\nb: ${B:?why}\nc: ${B}") == {"A": False, "B": False}


def test_git_ignores_the_env_file():
    done = subprocess.run(["git", "check-ignore", "-q", "docker/.env"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_only_services_that_need_a_password_have_it():
    found = services(SECRETS)
    holders = {
        name: {service for service, content in found.items() if value in content.get("environment", {}).values()}
        for name, value in SECRETS.items()
    }
    nodes = {"head", "worker", "worker-gpu"}
    assert holders == {
        "POSTGRES_PASSWORD": {"db", "mlflow"},
        "MLFLOW_PASSWORD": {"mlflow", *nodes},
        "MLFLOW_SECRET": {"mlflow"},
        "S3_ACCESS_KEY": {"s3", "buckets", "mlflow", *nodes},
        "S3_SECRET_KEY": {"s3", "buckets", "mlflow", *nodes},
        "TORCH_INDEX": set(),  # for the build only
    }


def test_only_mlflow_reaches_the_database():
    whole = yaml.safe_load(interpolate(TEXT, SECRETS))
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
    """Return the RayCluster specification of a document, {} if it has none."""
    spec = document["spec"] if document["kind"] in ("RayCluster", "RayJob") else {}
    return spec.get("rayClusterSpec", spec)


def pods(document):
    """Return (group, pod specification) of each group of a RayCluster or RayJob."""
    spec = cluster_of(document)
    groups = [("head", spec["headGroupSpec"])] if spec else []
    groups += [(group["groupName"], group) for group in spec.get("workerGroupSpecs", [])]
    return [(name, group["template"]["spec"]) for name, group in groups]


OURS = [pytest.param(path, d, id=f"{path.stem}:{d['kind']}") for path in KUBERAY for d in documents(path)]
RAY = [param for param in OURS if param.values[1]["kind"].startswith("Ray")]


def standard_documents(document):
    """Return documents that Kubernetes' own schemas know: the document, or a Pod for each group."""
    if not cluster_of(document):
        return [document]
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        for name, pod in pods(document)
    ]


@pytest.mark.parametrize(("path", "document"), OURS)
def test_a_manifest_matches_the_kubernetes_schemas(path, document):
    for standard in standard_documents(document):
        kubernetes_validate.validate(standard, KUBERNETES, strict=True)


def test_the_kubernetes_schemas_detect_errors():
    pod = copy.deepcopy(standard_documents(RAY[0].values[1])[0])
    pod["spec"]["terminationGracePeriod"] = 5
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("path", "document"), RAY)
def test_a_ray_resource_matches_the_custom_resource_definition_of_kuberay(path, document, version):
    definition = schema(version, document["kind"])
    jsonschema.Draft7Validator(definition).validate(document)
    assert list(fields_with_rules(document, definition)) == []  # a schema does not check these
    for group in cluster_of(document)["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.update(enableInTreeAutoscaler=True), "enableInTreeAutoscaler"),
        (lambda spec: spec["autoscalerOptions"].update(version="v3"), "v3"),
        (lambda spec: spec["workerGroupSpecs"][0].update(minReplicas="0"), "'0' is not of type 'integer'"),
        (lambda spec: spec["workerGroupSpecs"][0].pop("maxReplicas"), "maxReplicas"),
        (lambda spec: spec["headGroupSpec"].update(rayStartParams={"num-cpus": 0}), "0 is not of type 'string'"),
        (
            lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(imagePolicy="Always"),
            "imagePolicy",
        ),
        (lambda spec: spec["headGroupSpec"]["template"]["spec"].pop("containers"), "containers"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("path", "document"), RAY)
def test_the_schema_of_kuberay_detects_errors(path, document, version, change, message):
    broken = copy.deepcopy(document)
    change(cluster_of(broken))
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.Draft7Validator(schema(version, broken["kind"])).validate(broken)


def test_a_field_with_a_rule_beyond_the_schema_is_detected():
    job = copy.deepcopy(next(param.values[1] for param in RAY if param.values[1]["kind"] == "RayJob"))
    job["spec"]["managedBy"] = "another-controller"  # a rule of CEL: only two names are allowed
    assert list(fields_with_rules(job, schema(VERSIONS[0], "RayJob"))) == [".spec.managedBy"]


@pytest.mark.parametrize(("path", "document"), RAY)
def test_workers_come_and_go_with_the_runs(path, document):
    """Ray's autoscaler reads its configuration from the resource, with the function used here."""
    spec = cluster_of(document)
    assert spec["enableInTreeAutoscaling"] is True
    metadata = {"name": "repro", "namespace": document["metadata"]["namespace"]}
    config = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": spec})
    group = config["available_node_types"]["gpu"]
    assert (group["min_workers"], group["max_workers"]) == (0, 16)
    limits = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["resources"]["GPU"] == limits["nvidia.com/gpu"]
    assert config["idle_timeout_minutes"] * 60 == spec["autoscalerOptions"]["idleTimeoutSeconds"]
    args = dict(pods(document))["head"]["containers"][0]["args"]
    assert args[args.index("--autoscaled") + 1] == "gpu"  # of which the group has some


@pytest.mark.parametrize(("path", "document"), RAY)
def test_a_pod_has_no_unneeded_privileges(path, document):
    for name, pod in pods(document):
        assert pod["automountServiceAccountToken"] is (name == "head")  # the autoscaler beside it changes replicas
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize(("path", "document"), RAY)
def test_a_deleted_pod_has_time_to_write_checkpoints(path, document):
    """KubeRay's own command would end at once; ours receives SIGTERM, and the pod waits longer than --grace."""
    assert document["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    for _, pod in pods(document):
        args = [str(argument) for argument in pod["containers"][0]["args"]]
        assert args[0] == "node"
        assert float(args[args.index("--grace") + 1]) + 20 <= pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(("path", "document"), RAY)
def test_the_token_is_a_mounted_secret_and_the_manifest_contains_no_secret(path, document):
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
def test_all_nodes_share_a_writable_home(path, document):
    claim = next(param.values[1] for param in OURS if param.values[1]["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for _, pod in pods(document):
        volume = next(volume for volume in pod["volumes"] if volume["name"] == "home")
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize(("path", "document"), RAY)
def test_kuberay_uses_the_health_check_of_the_image(path, document):
    """KubeRay's own probes use port 52365, on which our nodes run no agent: it would kill every pod."""
    (line,) = instructions("HEALTHCHECK")
    command = json.loads(line.partition("CMD ")[2])
    for _, pod in pods(document):
        for probe in ("livenessProbe", "readinessProbe"):
            assert pod["containers"][0][probe]["exec"]["command"] == command
    assert command[1].removeprefix("/opt/repro/") in [
        word for line in instructions("COPY") for word in line.split()
    ]


def test_a_container_without_a_node_is_not_healthy():
    """A running node: test_stack.py."""
    message = tool_errors(sys.executable, DOCKER / "healthy.py", os.getpid())
    assert "Ray has not started" in message


def test_workers_request_gpus_and_run_on_gpu_nodes():
    for param in RAY:
        worker = dict(pods(param.values[1]))["gpu"]
        assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] >= 1
        assert worker["containers"][0]["image"].endswith("-cuda")
        assert "nvidia.com/gpu.present" in worker["nodeSelector"]
        assert "nvidia.com/gpu" in {toleration["key"] for toleration in worker["tolerations"]}


def test_only_pods_of_the_namespace_and_kuberay_reach_the_nodes():
    policy = next(param.values[1] for param in OURS if param.values[1]["kind"] == "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    inside, operator = policy["ingress"]
    assert inside == {"from": [{"podSelector": {}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert operator["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_a_job_is_retried_and_has_a_deadline():
    job = next(param.values[1] for param in RAY if param.values[1]["kind"] == "RayJob")["spec"]
    assert job["backoffLimit"] > 0
    assert job["activeDeadlineSeconds"] > 0
    assert job["shutdownAfterJobFinishes"] is True
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": {"REPRO_INSIDE": "1"}}


def test_a_retried_job_resumes_if_the_first_try_saved_a_launch(tmp_path):
    """Run the script on clusters of two jobs, with a fake `repro` that saves a launch or not."""
    home, programs, calls = tmp_path / "home", tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    fake = '#!/bin/sh\necho "$*" >> "$CALLS"\n[ "$1 $SAVES" != "launch yes" ] || echo id > "$REPRO_LAUNCH_NOTE"\n'
    (programs / "repro").write_text(f'{fake}exit "$CODE"\n', encoding="utf-8")
    (programs / "repro").chmod(0o755)
    (home / "launches").mkdir(parents=True)
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), "REPRO_HOME": str(home)}

    def attempt(cluster, code, saves="no"):
        variables = env | {"RAY_CLUSTER_NAME": cluster, "CODE": str(code), "SAVES": saves}
        return subprocess.run(
            ["sh", str(LAUNCH_OR_RESUME), "a/b", "--max-gpu-hours", "1"], env=variables, check=False
        ).returncode

    launch = "launch a/b --max-gpu-hours 1"
    assert attempt("repro-launch-x7-aaaaa", 2) == 2  # ended before it saved a launch
    (home / "launches" / "other.json").touch()  # saved by another job in the meantime
    assert attempt("repro-launch-x7-bbbbb", 1, saves="yes") == 1
    assert attempt("repro-launch-x7-ccccc", 0) == 0
    assert calls.read_text(encoding="utf-8").splitlines() == [launch, launch, "resume"]
    attempt("repro-launch-y8-ddddd", 0)  # another job
    assert calls.read_text(encoding="utf-8").splitlines()[-1] == launch


def test_the_head_of_a_job_has_the_cluster_name_variable():
    job = next(param.values[1] for param in RAY if param.values[1]["kind"] == "RayJob")
    head = dict(pods(job))["head"]["containers"][0]
    label = {"fieldRef": {"fieldPath": "metadata.labels['ray.io/cluster']"}}
    assert {"name": "RAY_CLUSTER_NAME", "valueFrom": label} in head["env"]


# --- scripts -----------------------------------------------------------------------------------------------

SCRIPTS = [SLURM, LAUNCH_OR_RESUME, DOCKER / "repro", ROOT / "tests" / "docker" / "install_tools.sh"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_passes_bash_and_shellcheck(path):
    assert os.access(path, os.X_OK) or path == SLURM
    assert tool_errors("bash", "-n", path) == ""
    assert tool_errors(BIN / "shellcheck", path) == ""


def test_shellcheck_detects_errors(tmp_path):
    (tmp_path / "x.sh").write_text("#!/bin/bash\nrm -rf $1/x\n", encoding="utf-8")
    assert "SC2086" in tool_errors(BIN / "shellcheck", tmp_path / "x.sh")


# --- the Slurm script, with fake Slurm commands ------------------------------------------

# Each command records its call. A node runs until scancel signals its step; the head is ready at once.
FAKE_COMMANDS = {
    "scontrol": """case "$1 $2" in
"show hostnames") printf "$NODES" ;;
"show job") echo "   JobState=${STATE:-RUNNING Reason=None}"
    echo "   PreemptEligibleTime=2026-01-01T10:00:00 PreemptTime=${PREEMPTED:-None}" ;;
*) echo "scontrol $*" >>"$CALLS" ;; esac""",
    "srun": """while [[ $1 == --* ]]; do
    echo "srun $1" >>"$CALLS"
    [[ $1 != --job-name=* ]] || echo $$ >"$FOLDER/step-${1#--job-name=}"
    shift
done
exec "$@" """,
    "squeue": """echo '7.batch batch'
n=0; for step in repro-head repro-workers; do [ ! -e "$FOLDER/step-$step" ] || echo "7.$n $step"; n=1; done""",
    "scancel": """echo "scancel $*" >>"$CALLS"
case $2 in 7.0) step=repro-head ;; 7.1) step=repro-workers ;; esac
kill -TERM "$(cat "$FOLDER/step-$step")" """,  # a background process of this script ignores SIGINT
    "repro": """echo "repro $*" >>"$CALLS"
case $1 in
node) trap 'echo "node $2 ends" >>"$CALLS"; rm "$FOLDER/node-$$"; exit 0' TERM
    echo $$ >"$FOLDER/node-$$"
    if [ "$2" = --head ]; then
        [ -z "${HEAD_FAILS:-}" ] || { rm "$FOLDER/node-$$"; exit 1; }
        folder=$REPRO_HOME/cluster/$REPRO_CLUSTER; mkdir -p "$folder"; sleep 0.05
        printf '{\\n "gcs": "10.0.0.1:6380",\\n "dashboard": "x"\\n}' >"$folder/node.json"
    fi
    while :; do sleep 0.05; done ;;
*) if [[ " $* " == *" --dry-run "* ]]; then
        [ -z "${STOPPED_EARLY:-}" ] || { kill -TERM "$PPID"; sleep 0.2; }
        exit "${UNKNOWN:-0}"
    fi
    [ "$1" != launch ] || { sleep 0.05; mkdir -p "$REPRO_HOME/launches"; echo id >"$REPRO_LAUNCH_NOTE"; }
    until [ "$(ls "$FOLDER"/node-* 2>/dev/null | wc -l)" = "${STEPS:-2}" ]; do sleep 0.05; done
    [ -z "${RUNS_UNTIL_SIGTERM:-}" ] || { trap 'exit 130' TERM; while :; do sleep 0.05; done; }
    exit "${CODE:-0}" ;;
esac""",
}


@pytest.fixture
def slurm(tmp_path):
    """Functions to start the script as Slurm would, and to return the calls so far."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in FAKE_COMMANDS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    started = []

    def start(**variables):
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "REPRO_HOME": str(tmp_path / "home"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "NODES": "n1\\nn2\\nn3\\n",
            "CALLS": str(calls),
            "FOLDER": str(tmp_path),
        }
        argv = ["bash", str(SLURM), "resnet/cifar10_depth", "--scale", "smoke"]
        process = subprocess.Popen(argv, env=environment | variables, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    def recorded():
        return calls.read_text(encoding="utf-8").splitlines()

    yield start, recorded
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()
    for path in tmp_path.glob("node-*"):  # a fake node that still runs
        os.kill(int(path.read_text(encoding="utf-8")), signal.SIGKILL)


def until(condition):
    """Wait for a condition, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_slurm_job_starts_nodes_and_launch_and_stops_the_nodes(slurm):
    start, recorded = slurm
    assert start().wait(20) == 0
    calls = recorded()
    nodes = [call for call in calls if call.startswith("repro node")]
    assert nodes[0] == "repro node --head --listen auto --grace 60"
    assert nodes[1] == "repro node --address 10.0.0.1:6380 --listen auto --grace 60"
    assert {"srun --nodelist=n1", "srun --nodes=2", "srun --ntasks=2", "srun --exclude=n1"} <= set(calls)
    assert "repro launch resnet/cifar10_depth --scale smoke" in calls
    assert calls[-4:] == [  # in order, and each by a signal that does not cancel its step
        "scancel --signal=INT 7.1",
        "node --address ends",
        "scancel --signal=INT 7.0",
        "node --head ends",
    ]
    assert not any(call.startswith("scontrol requeue") for call in calls)


def test_a_slurm_job_stops_its_nodes_on_sigterm_and_is_requeued(slurm, tmp_path):
    start, recorded = slurm
    process = start(RUNS_UNTIL_SIGTERM="1")
    until(
        lambda: (
            len([*tmp_path.glob("node-*")]) == 2 and any(call.startswith("repro launch") for call in recorded())
        )
    )
    process.terminate()  # as --signal=B:TERM and a preemption do
    assert process.wait(20) == 0
    calls = recorded()
    assert calls[-3:] == ["scancel --signal=INT 7.0", "node --head ends", "scontrol requeue 7"]
    assert calls.count("node --address ends") == 1


@pytest.mark.parametrize(
    ("state", "requeued"), [("COMPLETING Reason=TimeLimit", True), ("COMPLETING Reason=None", False)]
)
def test_a_slurm_job_that_is_ending_is_requeued_only_at_its_time_limit(slurm, tmp_path, state, requeued):
    """A cancelled job is completing while its script runs, and so is one that Slurm requeues itself."""
    start, recorded = slurm
    process = start(RUNS_UNTIL_SIGTERM="1", STATE=state)
    until(lambda: any(call.startswith("repro launch") for call in recorded()[2:]))
    until(lambda: len([*tmp_path.glob("node-*")]) == 2)
    process.terminate()
    assert process.wait(20) == 0
    assert ("scontrol requeue 7" in recorded()) == requeued
    assert "node --head ends" in recorded()


def test_a_slurm_job_whose_steps_a_preemption_ended_is_requeued(slurm):
    """By Slurm's default a preemption ends the steps, and then the launch loses its cluster."""
    start, recorded = slurm
    assert start(CODE="2", PREEMPTED="2026-01-01T11:00:00").wait(20) == 0
    assert recorded()[-1] == "scontrol requeue 7"


def test_a_slurm_job_that_finished_is_not_requeued_by_a_preemption(slurm):
    start, recorded = slurm
    assert start(CODE="0", PREEMPTED="2026-01-01T11:00:00").wait(20) == 0
    assert not any(call.startswith("scontrol requeue") for call in recorded())


def test_a_requeued_slurm_job_resumes(slurm, tmp_path):
    start, recorded = slurm
    assert start().wait(20) == 0
    first = recorded()
    for path in tmp_path.glob("step-*"):
        path.unlink()
    assert start(SLURM_RESTART_COUNT="1").wait(20) == 0
    again = recorded()[len(first) :]
    assert "repro resume" in again
    assert not any(call.startswith("repro launch") for call in again)


def test_a_slurm_job_stopped_before_its_launch_is_requeued_and_then_launches(slurm, tmp_path):
    start, recorded = slurm
    assert start(STOPPED_EARLY="1").wait(20) == 0
    dry = "repro launch resnet/cifar10_depth --scale smoke --dry-run"
    assert recorded() == [dry, "scontrol requeue 7"]
    (tmp_path / "home" / "launches").mkdir(parents=True)
    (tmp_path / "home" / "launches" / "other.json").touch()  # saved by another job in the meantime
    assert start(SLURM_RESTART_COUNT="1").wait(20) == 0
    assert "repro launch resnet/cifar10_depth --scale smoke" in recorded()
    assert "repro resume" not in recorded()


def test_a_slurm_job_has_the_exit_code_of_its_launch(slurm):
    start, recorded = slurm
    assert start(CODE="1").wait(20) == 1
    assert [call for call in recorded() if call.endswith(" ends")] == ["node --address ends", "node --head ends"]


def test_a_slurm_job_on_one_node_needs_no_address_beyond_loopback(slurm):
    """The name of a Debian host is 127.0.1.1."""
    start, recorded = slurm
    assert start(NODES="n1\\n", STEPS="1", SLURM_CPUS_PER_TASK="8").wait(20) == 0
    nodes = [call for call in recorded() if call.startswith("repro node")]
    assert nodes == ["repro node --head --listen 127.0.0.1 --cpus 8 --grace 60"]


def test_wrong_arguments_end_a_slurm_job_before_ray_starts(slurm):
    start, recorded = slurm
    assert start(UNKNOWN="2").wait(20) == 2
    assert recorded() == ["repro launch resnet/cifar10_depth --scale smoke --dry-run"]


def test_slurm_jobs_have_clusters_of_their_own(slurm, tmp_path):
    start, _ = slurm
    assert start().wait(20) == 0
    for path in tmp_path.glob("step-*"):
        path.unlink()
    assert start(SLURM_RESTART_COUNT="1").wait(20) == 0  # the address of the first head remains
    assert {path.name for path in (tmp_path / "home" / "cluster").iterdir()} == {"slurm-7", "slurm-7-1"}


def test_a_slurm_job_without_a_head_fails_without_a_launch(slurm):
    start, recorded = slurm
    process = start(HEAD_FAILS="1")
    assert process.wait(20) == 1
    assert "Ray's head on n1 did not start" in process.stderr.read()
    assert not any("launch" in call for call in recorded() if "--dry-run" not in call)


def test_a_slurm_job_without_a_home_fails_with_a_message(slurm):
    start, _ = slurm
    process = start(REPRO_HOME="")
    assert process.wait(20) != 0
    assert "set REPRO_HOME to a folder that all nodes share" in process.stderr.read()


def test_slurm_gives_longer_notice_than_the_grace_period():
    text = SLURM.read_text(encoding="utf-8")
    grace, ending = (int(re.search(rf"^{name}=(\d+)", text, re.MULTILINE)[1]) for name in ("GRACE", "ENDING"))
    assert ending >= grace + 20
    assert int(re.search(r"--signal=B:TERM@(\d+)", text)[1]) > 2 * ending  # the workers end, then the head
    assert "#SBATCH --requeue" in text
    assert "umask 077" in text
