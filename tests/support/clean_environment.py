"""Environment variables that can change a result or a printed line, and their removal before the tests start."""

from collections.abc import MutableMapping

# What a batch system, a launcher, a user's shell or a CI service may have set.
PREFIXES = (
    *("SLURM_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "MPI_", "LSB_", "JSM_", "KUBERNETES_"),  # process launchers
    *("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_"),  # threads
    *("CUDA_", "NVIDIA_", "NCCL_", "GLOO_"),  # devices and their communication
    *("TORCH", "PL_", "LT_", "PYTORCH_", "RAY_", "MLFLOW_", "AWS_", "FSSPEC_", "HF_"),  # libraries
    "REPRO_",
)
SUFFIXES = ("_PROXY",)  # in upper or lower case, NO_PROXY included
NAMES = frozenset(
    [
        *("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"),
        "LOCAL_WORLD_SIZE",
        *("COLUMNS", "LINES", "TERMINAL_WIDTH", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE"),
        *("GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),  # typer and rich take them for a terminal
        *("SOURCE_DATE_EPOCH", "POSSIBLE_USER_WARNINGS"),
    ]
)
# One thread per test process: two threads on layers this small wait for each other. Exporting a network takes
# longer than a run at smoke scale; tests of exports set the variable.
SETTINGS = {"OMP_NUM_THREADS": "1", "REPRO_LOG_MODELS": "0"}

# A value for every kind of variable above that changes what a library does, prints or connects to.
HOSTILE = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SRUN_DEBUG": "3",
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "PMIX_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "MPI_LOCALRANKID": "3",
    "LSB_JOBID": "4711",
    "JSM_NAMESPACE_RANK": "3",
    "KUBERNETES_SERVICE_HOST": "192.0.2.1",
    "KUBERNETES_PORT": "tcp://192.0.2.1:443",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "1",
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "3",
    "NODE_RANK": "3",
    "GROUP_RANK": "3",
    "LOCAL_WORLD_SIZE": "4",
    "OMP_NUM_THREADS": "3",
    "OMP_DISPLAY_ENV": "TRUE",
    "MKL_NUM_THREADS": "3",
    "KMP_SETTINGS": "1",
    "GOMP_CPU_AFFINITY": "0",
    "OPENBLAS_NUM_THREADS": "3",
    "CUDA_VISIBLE_DEVICES": "7",
    "NVIDIA_VISIBLE_DEVICES": "none",
    "NCCL_DEBUG": "INFO",
    "GLOO_SOCKET_IFNAME": "none0",
    "TORCH_LOGS": "+all",
    "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "TORCHDYNAMO_VERBOSE": "1",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "LT_DEVICES": "4",
    "PL_TRAINER_MAX_STEPS": "1",
    "PL_TRAINER_LIMIT_TRAIN_BATCHES": "1",
    "PL_TRAINER_FAST_DEV_RUN": "1",
    "PL_GLOBAL_SEED": "99",
    "RAY_ADDRESS": "192.0.2.1:6379",
    "MLFLOW_TRACKING_URI": "http://192.0.2.1:5000",
    "MLFLOW_RUN_ID": "0" * 32,
    "REPRO_HOME": "/nonexistent/home",
    "REPRO_DATA": "/nonexistent/data",
    "REPRO_SHARDS": "s3://nonexistent",
    "REPRO_CHECKPOINT_SECONDS": "never",
    "HTTP_PROXY": "http://192.0.2.1:1",
    "https_proxy": "http://192.0.2.1:1",
    "NO_PROXY": "",
    "AWS_ENDPOINT_URL": "http://192.0.2.1:1",
    "AWS_PROFILE": "nobody",
    "FSSPEC_S3_ENDPOINT_URL": "http://192.0.2.1:1",
    "HF_HOME": "/nonexistent",
    "COLUMNS": "20",
    "LINES": "3",
    "TERMINAL_WIDTH": "20",
    "FORCE_COLOR": "1",
    "PY_COLORS": "1",
    "GITHUB_ACTIONS": "true",
    "TTY_COMPATIBLE": "1",
    "SOURCE_DATE_EPOCH": "0",
}
# Of these, what a user sets on purpose and this project follows: its own settings, addresses, threads, colour, and
# switches that let a library print what it does.
INTENDED = frozenset(
    [
        *(name for name in HOSTILE if name.startswith(("REPRO_", "MLFLOW_"))),
        *("RAY_ADDRESS", "OMP_NUM_THREADS", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"),
        *("OMP_DISPLAY_ENV", "KMP_SETTINGS", "TORCH_LOGS", "NCCL_DEBUG"),
    ]
)
IGNORED = {name: value for name, value in HOSTILE.items() if name not in INTENDED}  # must change nothing in a run


def is_removed(name: str) -> bool:
    """Return whether `clean_environment` removes this variable."""
    return name.startswith(PREFIXES) or name.upper().endswith(SUFFIXES) or name in NAMES


def clean_environment(environment: MutableMapping[str, str]) -> None:
    """Remove the variables above from `environment` in place, and set those of SETTINGS."""
    for name in [name for name in environment if is_removed(name)]:
        del environment[name]
    environment.update(SETTINGS)
