"""SIGTERM, SIGUSR1 and SIGINT ask a run to save its state and leave, while it trains or evaluates."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(Exception):
    """The state is saved and the run can be continued by the same command."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + self.signum


class Flag:
    """Remembers the first signal. A second SIGINT is Python's own KeyboardInterrupt."""

    def __init__(self) -> None:
        self.signum = 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self.signum = self.signum or signum

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Install the handlers for a while; in a thread other than the main one nothing is installed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {s: signal.getsignal(s) for s in SIGNALS}
        for signum in SIGNALS:
            signal.signal(signum, self._handle)
        try:
            yield
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)
