"""Build and run images without a daemon: buildah with chroot isolation, podman with runc, a base by debootstrap.

Variables of the environment: REPRO_DEBIAN_MIRROR (where Debian's packages come from), REPRO_BUILD_VOLUMES (folders
that builds need, for example of a local package index, as A:B,C:D), REPRO_TORCH_INDEX (by default pypi).
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.composed import ROOT

INSTALL = "tests/docker/install_tools.sh"
PACKAGES = "ca-certificates,libpython3-dev,python3,python3-venv"  # of the base
BASE = f"localhost/cnn-repro-base:bookworm-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
IMAGE = "localhost/cnn-repro:cpu"
# A container cannot raise the limits of this machine; podman lowers that of processes. Its defaults may be higher.
LIMITS = {"nofile": (resource.RLIMIT_NOFILE, 65536), "nproc": (resource.RLIMIT_NPROC, 16384)}


def hard_limit(limit: int) -> int:
    """Return a hard limit of this process."""
    _, hard = resource.getrlimit(limit)
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


RUN_OPTIONS = [f"--ulimit={name}={min(most, hard_limit(limit))}" for name, (limit, most) in LIMITS.items()]
NO_TIMERS = {
    "DISABLE_HC_SYSTEMD": "true"
}  # podman runs health checks by timers of systemd: here the tests run them
PIP_FILES = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def missing_tools(*names: str) -> str:
    """Return why these programs cannot be used on this machine, "" if they can."""
    missing = [name for name in names if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found; on Debian: {INSTALL}"
    return "" if os.geteuid() == 0 else "needs root"


def tool(*argv: object, seconds: float = 600.0, **variables: str) -> str:
    """Run a program and return its output; AssertionError with the end of its messages if it fails."""
    words = [str(word) for word in argv]
    env = os.environ | NO_TIMERS | variables
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False, env=env)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def podman(*argv: object, seconds: float = 600.0) -> str:
    """Run podman with runc."""
    return tool("podman", "--runtime", "runc", *argv, seconds=seconds)


def make_base(folder: Path) -> None:
    """Make the base image: Debian 12 with Python 3.11, and this machine's pip settings and certificates.

    It takes minutes, so one of an earlier call is used again; `podman rmi` removes it.
    """
    if subprocess.run(["podman", "image", "exists", BASE], check=False).returncode == 0:
        return
    root = folder / "root"
    mirror = os.environ.get("REPRO_DEBIAN_MIRROR", "http://deb.debian.org/debian")
    tool("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root, mirror, seconds=1800)
    (root / "usr/bin/python").symlink_to("python3")
    shutil.copy(CERTIFICATES, root / CERTIFICATES.lstrip("/"))
    own = next((path for name in PIP_FILES if (path := Path(name).expanduser()).is_file()), None)
    if own:
        shutil.copy(own, root / "etc/pip.conf")
    archive = folder / "base.tar"
    tool("tar", "-C", root, "-cf", archive, ".")
    tool("podman", "import", archive, BASE)


def build(file: Path, context: Path, image: str, *options: str) -> None:
    """Build an image. Its steps run in a chroot, with this machine's network."""
    named = os.environ.get("REPRO_BUILD_VOLUMES", "").split(",")
    volumes = [word for volume in named if volume for word in ("-v", volume)]
    argv = ["bud", "--isolation", "chroot", "--layers", *volumes, *options, "-f", file, "-t", image, context]
    tool("buildah", *argv, seconds=3600)


def build_image(commit: str) -> None:
    """Build the CPU image of this checkout, from PyPI's packages alone."""
    arguments = {"BASE": BASE, "TORCH_INDEX": os.environ.get("REPRO_TORCH_INDEX", "pypi"), "COMMIT": commit}
    options = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    build(ROOT / "docker" / "Dockerfile", ROOT, IMAGE, "--target", "cpu", "--format", "docker", *options)


def containers(service: str) -> list[str]:
    """Return the names of a compose service's containers."""
    label = f"label=com.docker.compose.service={service}"
    return podman("ps", "--all", "--filter", label, "--format", "{{.Names}}").split()


def is_healthy(container: str) -> bool:
    """Run the health check of a container; one that takes a minute has failed."""
    argv = ["podman", "--runtime", "runc", "healthcheck", "run", container]
    try:
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def inspect(image: str) -> dict[str, Any]:
    """Return what podman knows of an image."""
    (found,) = json.loads(podman("image", "inspect", image))
    return dict(found)


def layer_sizes(image: str) -> list[int]:
    """Return the bytes of the layers that are not empty, the oldest first."""
    history = json.loads(podman("history", "--format", "json", "--human=false", image))
    return [int(entry["size"]) for entry in reversed(history) if int(entry["size"])]
