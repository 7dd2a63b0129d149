"""Stop of all processes at the same poll, once one of them is asked to.

Loops poll between steps, all processes equally often. A process that is asked publishes that. Each
process then holds its loop at its next poll and publishes how many polls it has made. When all have
done so, the loops continue to the first poll that none has reached, and stop there: no process
stops while another waits for it in a step.

jax's `multihost_utils.reached_preemption_sync_point` works alike, but for SIGTERM alone, not for
Ctrl-C; it takes the signal's handler, so that a second signal cannot end the process.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

_ASKED = "stop"
_POLLS = "polls/"


class AgreedStop:
    """One process's part: `poll` is for its loop, `look` for the thread that receives.

    Args:
        publish: sends a key and a value to all processes.
        index: of this process.
        count: number of processes.
    """

    def __init__(self, publish: Callable[[str, Any], None], index: int, count: int) -> None:
        self._publish, self._index, self._count = publish, index, count
        self._lock = threading.Lock()
        self._may_pass = threading.Event()
        self._may_pass.set()
        self._polls = 0
        self._stop_at: int | None = None

    def ask(self) -> None:
        """Ask all processes to stop; from any thread."""
        self._publish(_ASKED, True)

    def poll(self) -> bool:
        """Return True if the loop must stop here: at the same poll in all processes."""
        while True:
            self._may_pass.wait()
            with self._lock:
                if self._may_pass.is_set():
                    self._polls += 1
                    return self._stop_at is not None and self._polls >= self._stop_at

    def look(self, found: Mapping[str, Any]) -> None:
        """Do the next step of an agreement, if a process was asked to stop.

        Args:
            found: what all processes have published, by key.
        """
        if self._stop_at is not None or _ASKED not in found:
            return
        with self._lock:
            if f"{_POLLS}{self._index}" not in found:
                self._may_pass.clear()
        self.publish_polls()
        polls = [count for key, count in found.items() if key.startswith(_POLLS)]
        if len(polls) == self._count:
            self._stop_at = max(polls) + 1
            self._may_pass.set()

    def publish_polls(self) -> None:
        """Publish the number of polls, once; at the latest after the last of them.

        Otherwise another process that is asked to stop on its last steps would wait for it.
        """
        self._publish(f"{_POLLS}{self._index}", self._polls)
