#!/bin/sh
# Install the tools of the slow tests in this folder on Debian: image builds and containers without a daemon, a base
# image, and Slurm. Run it as root, on a machine for tests.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends \
    aardvark-dns buildah debootstrap iptables munge netavark podman python3-venv runc slurm-wlm
python3 -m venv /opt/podman-compose
/opt/podman-compose/bin/pip install "podman-compose==1.6.*"
ln -sf /opt/podman-compose/bin/podman-compose /usr/local/bin/podman-compose
