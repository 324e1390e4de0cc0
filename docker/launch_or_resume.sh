#!/bin/sh
# Entry point of a RayJob, with the arguments of `repro launch`. When KubeRay retries the job, a second launch would
# reset its budget and its cancellations. So a retry resumes the launch that the first try saved; it launches only if
# the first try saved none.
set -eu

: "${REPRO_HOME:?}" "${RAY_CLUSTER_NAME:?}"
job=${RAY_CLUSTER_NAME%-*} # each try has its own cluster, named after the RayJob with a random suffix
begun="$REPRO_HOME/launches/$job.begun"
if [ -e "$begun" ] && [ -n "$(find "$REPRO_HOME/launches" -name '*.json' -newer "$begun")" ]; then
    exec repro resume
fi
mkdir -p "$REPRO_HOME/launches"
touch "$begun"
exec repro launch "$@"
