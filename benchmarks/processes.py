"""Measurements in processes of their own, so that none warms, slows or fattens another."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

Found = dict[str, float]


def memory() -> Found:
    """Bytes: `peak` of all resident memory so far; `private` to this process, now.

    Pages of mapped files are part of the first only: processes share them, and the system takes
    them back when it needs room.
    """
    status = pathlib.Path("/proc/self/status").read_text()

    def field(name: str) -> float:
        (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", status)
        return 1024.0 * int(kilobytes)

    return {"peak": field("VmHWM"), "private": field("RssAnon")}


@contextlib.contextmanager
def most_private() -> Iterator[list[float]]:
    """A list that a thread fills with the private memory, every few milliseconds."""
    seen, stop = [memory()["private"]], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            seen.append(memory()["private"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        seen.append(memory()["private"])


def measure(module: str, arguments: Sequence[str]) -> Found | None:
    """What `python -m <module> <arguments>` prints as JSON in its last line; None for "null"."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: Found | None = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(found: Sequence[Found]) -> Found:
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def conditions(packages: Sequence[str]) -> str:
    """The date, the machine and the versions, in Markdown."""
    model = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return (
        f"{datetime.date.today()}, {model[1] if model else platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores; {', '.join(versions)}."
    )


def load_average() -> float:
    return os.getloadavg()[0]
