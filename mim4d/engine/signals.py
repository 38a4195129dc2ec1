"""How a run ends early: the first Ctrl-C or SIGTERM lets the step end and be saved, the second stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class TrainingFailed(Exception):
    """The numbers went wrong or the memory ran out; the message says where and what to try. Exit status 1."""


class Interrupted(Exception):
    """The run was stopped by a signal. ``code`` is the exit status: 128 + signal (130 for Ctrl-C)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StopRequest:
    """Context manager: ``requested`` is the signal that asked for the end, or 0.

    Outside the main thread, where Python allows no handlers, it never asks.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = 0
        self._old: dict[signal.Signals, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = number

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
