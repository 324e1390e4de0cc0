"""Python's search for objects that refer to each other in a cycle, which is switched off where it costs much."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Context, or decorator, without the search for cycles.

    It takes a tenth of the time where many objects are made and kept, such as networks or the records of runs, and
    finds little.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
