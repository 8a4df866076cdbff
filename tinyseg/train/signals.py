"""Ending a run on request: Ctrl-C and SIGTERM are noted, and the run ends after the step that it is in."""

import signal
import threading
from types import FrameType


class StopRequest:
    """Truthy once the process was asked to end. A second Ctrl-C does not wait: it raises `KeyboardInterrupt`.

        with StopRequest() as stop:
            for batch in batches:
                step(batch)
                if stop:
                    break

    Outside the main thread no signal can be caught; the request is then never made.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
