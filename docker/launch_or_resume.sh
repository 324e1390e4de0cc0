#!/bin/sh
# Entry point of a RayJob, with the arguments of `repro launch`. When KubeRay retries the job, a second launch would
# reset its budget and its cancellations. So a retry resumes the launch that the first try saved; it launches only if
# the first try saved none.
set -eu

: "${REPRO_HOME:?}" "${RAY_CLUSTER_NAME:?}"
job=${RAY_CLUSTER_NAME%-*} # each try has its own cluster, named after the RayJob with a random suffix
export REPRO_LAUNCH_NOTE="$REPRO_HOME/launches/$job.launch" # written once the launch is saved
if [ -e "$REPRO_LAUNCH_NOTE" ]; then
    exec repro resume
fi
exec repro launch "$@"
