"""Of several processes all stop at one poll, once one of them is asked to.

Loops poll between steps, all processes equally often. Who is asked sets a key; who sees it holds
its loop at the next poll and tells how many polls it has made; when all have told, the first poll
that none has come to yet is the one to stop at, and the loops go on to it. No process stops while
another waits for it in a step.
"""

import contextlib
import threading
from collections.abc import Mapping

from idode_gin.processes import joining

ASKED = "stop"
TOLD = "polls/"


class AgreedStop:
    """One process's part. `poll` is for its loop, `look` for a thread that watches the others.

    Args:
        prefix: of the keys of the store.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._may_pass = threading.Event()
        self._may_pass.set()
        self._count = 0
        self._has_told = False
        self._stop_at: int | None = None

    @property
    def is_agreeing(self) -> bool:
        """Whether the loop is held meanwhile."""
        return not self._may_pass.is_set()

    def ask(self) -> None:
        """Asks all processes to stop; from any thread."""
        with contextlib.suppress(Exception):  # another one was first, or the store is gone
            joining.client().key_value_set(f"{self._prefix}{ASKED}", "")

    def poll(self) -> bool:
        """Whether to stop here: the same answer, poll by poll, in all processes."""
        while True:
            self._may_pass.wait()
            with self._lock:
                if not self._may_pass.is_set():
                    continue
                self._count += 1
                return self._stop_at is not None and self._count >= self._stop_at

    def look(self, found: Mapping[str, str]) -> None:
        """Takes the next step towards an agreement, if one is asked for.

        Args:
            found: what the store holds, by key without its prefix.
        """
        if self._stop_at is not None or ASKED not in found:
            return
        with self._lock:
            if not self._has_told:
                self._may_pass.clear()
        self.tell()
        told = [int(count) for key, count in found.items() if key.startswith(TOLD)]
        if len(told) == joining.count():
            self._stop_at = max(told) + 1
            self._may_pass.set()

    def tell(self) -> None:
        """Tells the others, once, how many polls there were; at the latest when there are no more.

        Else they would wait for it, if one of them is asked to stop on its last steps.
        """
        if self._has_told:
            return
        self._has_told = True
        with contextlib.suppress(Exception):
            key = f"{self._prefix}{TOLD}{joining.index()}"
            joining.client().key_value_set(key, str(self._count))
