"""Whether a run that is executing should stop."""

import time
from collections.abc import Callable

from pipeline.track.run_folder import RunFolder

STOP_POLL_SECONDS = 0.25  # interval between checks


class StopSignal:
    """Callable that returns whether a run should stop. Cheap, and true for good once it was true.

    It stops on a request in its folder, or because `also()` is true: its node shuts down, or Ctrl-C. `only`: the
    reason of the requests that count; by default all do.
    """

    def __init__(self, folder: RunFolder, also: Callable[[], bool], *, only: str = "") -> None:
        self.folder, self.also, self.only = folder, also, only
        self.checked, self.stopping = -STOP_POLL_SECONDS, False
        self.why, self.when = "", 0.0  # of the stop request; "" where `also` was true

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self.checked >= STOP_POLL_SECONDS:
            self.checked = now
            if not self.stopping:
                why, when = self.folder.stop_request()
                if why and self.only in ("", why):
                    self.why, self.when = why, when
                self.stopping = bool(self.why) or self.also()
        return self.stopping
