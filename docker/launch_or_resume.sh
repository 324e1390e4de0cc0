#!/bin/sh
# What a RayJob does, with the words of `repro launch`. When KubeRay tries it again, it does not launch anew, with a
# fresh budget and what was cancelled wanted again, but goes on with what the first try has written down; where that
# never came so far, it launches.
set -eu

: "${REPRO_HOME:?}" "${RAY_CLUSTER_NAME:?}"
job=${RAY_CLUSTER_NAME%-*} # each try has a cluster of its own, called after the RayJob, a hyphen, and some letters
begun="$REPRO_HOME/launches/$job.begun"
if [ -e "$begun" ] && [ -n "$(find "$REPRO_HOME/launches" -name '*.json' -newer "$begun")" ]; then
    exec repro resume
fi
mkdir -p "$REPRO_HOME/launches"
touch "$begun"
exec repro launch "$@"
