"""Set up the process that trains: threads and memory allocator; detect bf16 and a compiler."""

import ctypes
import logging
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.common.errors import UserError
from pipeline.common.words import first_line
from pipeline.train.ranks import SINGLE_RANK, RankGroup

NO_TF32 = (
    "precision tf32 needs an NVIDIA GPU of the Ampere generation or later, which this machine does not have; use"
    " fp32 or bf16"
)


def prepare_process(threads: int) -> None:
    """Set the number of threads, silence libraries, and tune the memory allocator.

    Removes PL_TRAINER_* from the environment.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # otherwise Lightning gives every rank all cores
    for name in [name for name in os.environ if name.startswith("PL_TRAINER_")]:
        del os.environ[name]  # Lightning reads arguments of its Trainer from them
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning.*")
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # RankEnvironment knows the ranks
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")  # from torch about its own modules
    tune_allocator()


def tune_allocator() -> None:
    """Stop glibc from returning memory after every step: page faults cost up to 30 % of a step on a CPU.

    mallopt(3): M_MMAP_THRESHOLD -3, M_TRIM_THRESHOLD -1, M_TOP_PAD -2. Does nothing on other C libraries.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((-3, 32 * 2**20 - 1), (-1, 2**31 - 1), (-2, 256 * 2**20)):
            libc.mallopt(parameter, value)


def has_bf16(device: str) -> bool:
    """Return True if the device computes in bfloat16 without emulation."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return hasattr(torch.ops, "mkldnn") and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_tf32() -> bool:
    """Return True if there is a GPU with TensorFloat-32."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def allow_tf32(allowed: bool, group: RankGroup = SINGLE_RANK) -> None:
    """Let GPUs compute matrix products and convolutions in TensorFloat-32, or forbid it; torch allows the latter.

    Raises UserError if it is to be allowed and a device of the group lacks it.
    """
    (lacking,) = group.any_rank(allowed and not has_tf32())
    if lacking:
        raise UserError(NO_TF32)
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def has_compiler() -> bool:
    """Return True if torch.compile finds a C++ compiler, which it needs for CPU kernels and GPU launchers."""
    compiler = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([compiler] if compiler else ["g++", "clang++"]))


def error_of_compiler(error: Exception) -> str:
    """Return what an error of torch's compiler says, without the name of the part that met it."""
    return first_line(getattr(error, "inner_exception", error))


@contextmanager
def explain_compile_errors() -> Iterator[None]:
    """Context that turns an error of torch's compiler into a UserError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        compiler = sys.modules.get("torch._dynamo.exc")  # imported by whatever compiles
        if compiler is None or not isinstance(error, compiler.TorchDynamoException):
            raise
        raise UserError(
            f"torch cannot compile the network: {error_of_compiler(error)}; delete its compiler cache (the folder"
            " TORCHINDUCTOR_CACHE_DIR, by default torchinductor_USER in the temporary folder), or do not compile:"
            " --set train.compile=false"
        ) from error
