"""Prepare the process that trains: threads, memory allocator, precision and compiler support."""

import ctypes
import logging
import os
import platform
import shutil
import sys
import warnings

import torch


def prepare_process(threads: int) -> None:
    """Threads, quiet libraries, and an allocator that keeps its pages between steps."""
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else Lightning gives each of several ranks all cores
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")  # of torch about its own parts
    tune_allocator()


def tune_allocator() -> None:
    """Stop glibc from handing memory back after every step: page faults cost up to 30 % of a step on a CPU.

    mallopt(3): M_MMAP_THRESHOLD -3, M_TRIM_THRESHOLD -1, M_TOP_PAD -2. Elsewhere than on glibc: nothing.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((-3, 32 * 2**20 - 1), (-1, 2**31 - 1), (-2, 256 * 2**20)):
            libc.mallopt(parameter, value)


def has_bf16(device: str) -> bool:
    """Whether the device computes in bfloat16 itself, instead of emulating it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return hasattr(torch.ops, "mkldnn") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler it needs, for a CPU's kernels and a GPU's launchers alike."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"]))
