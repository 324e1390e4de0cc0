"""The image, built on this machine without a daemon, and the composed stack of it with a launch to its verdicts.

Needs the tools of install_tools.sh, an hour and 20 GB. PostgreSQL and the S3 store are stand-ins from Debian's and
PyPI's packages, because only package indexes are reachable.
"""

import json
import os
import secrets
import subprocess
import time
from graphlib import TopologicalSorter

import pytest
import yaml

from tests.support.composed import COMPOSE, ROOT, interpolate, variables
from tests.support.containers import (
    BASE,
    IMAGE,
    NO_TIMERS,
    RUN_OPTIONS,
    build,
    build_image,
    containers,
    inspect,
    is_healthy,
    layer_sizes,
    make_base,
    missing_tools,
    podman,
    tool,
)

REASON = missing_tools("buildah", "debootstrap", "podman", "podman-compose", "runc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(bool(REASON), reason=REASON),
]
MB = 10**6
EXPERIMENT = "resnet/cifar10_depth"
STACK_SECONDS = 900.0  # until a service is healthy, on a busy machine


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The CPU image of this checkout."""
    make_base(tmp_path_factory.mktemp("base"))
    build_image("first")
    return IMAGE


def in_container(*argv, entrypoint=None):
    """Run a command in a container of the image without a network; return its output."""
    options = ["--entrypoint", entrypoint] if entrypoint else []
    return podman("run", "--rm", "--network", "none", *RUN_OPTIONS, *options, IMAGE, *argv)


def test_the_image_runs_the_command_as_a_user_without_rights(image):
    assert EXPERIMENT in in_container("list")
    assert (
        in_container("-c", "import os; print(os.getuid(), os.getgid())", entrypoint="python").split()
        == ["1000"] * 2
    )


def test_nothing_of_the_build_stays(image):
    left = "find /build /root/.cache /tmp /var/lib/apt/lists /var/cache/apt -type f -size +0;"
    left += " ls -d /opt/venv/bin/pip /opt/venv/lib/python3*/site-packages/pip"
    assert in_container("-c", f"({left}) 2>/dev/null; true", entrypoint="sh") == ""


COMPILED_STEP = """
import torch

network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
eager = network(images)
compiled = torch.compile(network)(images)
compiled.sum().backward()
print(torch.cuda.is_available(), torch.allclose(eager, compiled, atol=1e-5), network[0].weight.grad is not None)
"""


def test_torch_trains_and_compiles_in_the_image_without_a_gpu(image):
    """With g++ and Python's headers, and without Triton."""
    assert in_container("-c", COMPILED_STEP, entrypoint="python").split() == ["False", "True", "True"]


def test_the_environment_is_stored_once_and_the_code_last(image):
    sizes = layer_sizes(image)
    assert sizes[-1] < 20 * MB
    large = [index for index, size in enumerate(sizes) if size > 500 * MB]
    assert large == [len(sizes) - 2]  # the environment


def test_a_new_commit_changes_only_the_last_layer(image):
    before = inspect(image)["RootFS"]["Layers"]
    build_image("second")
    after = inspect(image)["RootFS"]["Layers"]
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]


def test_a_checkout_of_windows_makes_the_same_files(image, tmp_path):
    """Without CR, which shells and Linux reject."""
    clone = tmp_path / "clone"
    tool("git", "clone", "--quiet", "--config", "core.autocrlf=true", ROOT, clone)
    code = "localhost/cnn-repro-code"
    build(clone / "docker" / "Dockerfile", clone, code, "--target", "code", "--build-arg", f"BASE={BASE}")
    find_cr = "grep -rl $(printf '\\r') /image; ls /image/opt/repro"
    files = podman("run", "--rm", "--network", "none", *RUN_OPTIONS, "--entrypoint", "sh", code, "-c", find_cr)
    assert sorted(files.split()) == sorted(
        ["COMMIT", "docker", "experiments", "lightning_modules", "pipeline", "pyproject.toml", "requirements.lock"]
    )


# --- the composed stack ------------------------------------------------------------------------------------

POSTGRES = f"""FROM {BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql && rm -rf /var/lib/apt/lists/* \\
    && mkdir -p /var/lib/postgresql/data && chown postgres:postgres /var/lib/postgresql/data
COPY start.sh /start.sh
VOLUME /var/lib/postgresql/data
USER postgres
CMD ["sh", "/start.sh"]
"""
START_POSTGRES = """set -eu
bin=$(ls -d /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data/files
if ! [ -e "$data/PG_VERSION" ]; then
    printf %s "$POSTGRES_PASSWORD" > /tmp/password
    "$bin/initdb" -D "$data" -U "$POSTGRES_USER" --pwfile=/tmp/password -A scram-sha-256 -E UTF8
    rm /tmp/password
    echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
    "$bin/pg_ctl" -D "$data" -w start
    PGPASSWORD="$POSTGRES_PASSWORD" createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    "$bin/pg_ctl" -D "$data" -w stop
fi
exec "$bin/postgres" -D "$data" -c "listen_addresses=*"
"""
S3 = f"""FROM {BASE}
RUN python -m venv /opt/moto && /opt/moto/bin/pip install --no-cache-dir "moto[server]"
"""


def stand_ins(folder):
    """Build the images that replace PostgreSQL's and the S3 gateway's."""
    for name, text in {"db": POSTGRES, "s3": S3}.items():
        (folder / name).mkdir()
        (folder / name / "Containerfile").write_text(text, encoding="utf-8")
    (folder / "db" / "start.sh").write_text(START_POSTGRES, encoding="utf-8")
    for name in ("db", "s3"):
        build(folder / name / "Containerfile", folder / name, f"localhost/stand-in-{name}")


def effective_file():
    """Return the content of the compose file with stand-ins, and without what this machine cannot grant."""
    values = {name: secrets.token_urlsafe(16) for name in variables(COMPOSE.read_text(encoding="utf-8"))}
    content = yaml.safe_load(interpolate(COMPOSE.read_text(encoding="utf-8"), values))
    found = content["services"]
    del found["worker-gpu"]
    found["db"]["image"] = "localhost/stand-in-db"
    python = "import urllib.request as r; r.urlopen('http://127.0.0.1:7070')"
    found["s3"] |= {"image": "localhost/stand-in-s3", "entrypoint": ["/opt/moto/bin/moto_server"]}
    found["s3"] |= {"command": ["-H", "0.0.0.0", "-p", "7070"]}
    found["s3"]["healthcheck"]["test"] = ["CMD", "python", "-c", python]
    for service in found.values():
        service.pop("build", None)
        service.pop("deploy", None)  # control groups
        service.pop("ulimits", None)
        service["image"] = service["image"].replace("cnn-repro:cpu", IMAGE)
    return content


@pytest.fixture(scope="module")
def composed(image, tmp_path_factory):
    """A function that runs podman-compose on the started stack."""
    folder = tmp_path_factory.mktemp("stack")
    stand_ins(folder)
    file = folder / "compose.yaml"
    file.write_text(yaml.safe_dump(effective_file()), encoding="utf-8")
    options = ["--podman-args=--runtime runc", f"--podman-run-args={' '.join(RUN_OPTIONS)}", "-f", str(file)]

    def run(*argv, seconds=600.0):
        return tool("podman-compose", *options, *argv, seconds=seconds)

    try:
        for service in in_order(effective_file()["services"]):
            run("up", "--detach", "--no-build", "--no-deps", service)
            wait_for(service)
        yield run
    finally:
        env = os.environ | NO_TIMERS
        subprocess.run(["podman-compose", *options, "down", "--volumes"], check=False, timeout=600, env=env)


def in_order(found):
    """Return the names of services, each after those that it waits for."""
    return list(
        TopologicalSorter({name: service.get("depends_on", {}) for name, service in found.items()}).static_order()
    )


def wait_for(service):
    """Wait until a service is healthy, or until it has ended well. Debian's podman cannot wait for conditions."""
    (container,) = containers(service)
    if service == "buckets":
        assert podman("wait", container).strip() == "0", podman("logs", container)
        return
    deadline = time.monotonic() + STACK_SECONDS
    while not is_healthy(container):
        assert time.monotonic() < deadline, f"{service} is not healthy\n{podman('logs', container)[-3000:]}"
        time.sleep(5)


def test_a_launch_in_the_composed_stack_reaches_its_verdicts(composed):
    composed("exec", "-T", "head", "repro", "launch", EXPERIMENT, "--scale", "smoke", seconds=1800)
    board = composed("exec", "-T", "head", "repro", "leaderboard", EXPERIMENT, "--json")
    rows = [row for row in json.loads(board) if row["scale"] == "smoke"]
    assert sorted((row["variant"], row["seeds"]) for row in rows) == [("plain-20", 3), ("resnet-20", 3)]
    verdicts = json.loads(composed("exec", "-T", "head", "repro", "verify", EXPERIMENT, "--json"))
    assert verdicts
