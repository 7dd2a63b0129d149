"""Check an installation and its surroundings, with a fix for everything that is wrong.

    python -m idode_gin.doctor [--tfds_data_dir DIR] [--coordinator_address HOST:PORT]

Exit codes: 0 nothing to fix, 1 something to fix.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import socket
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import NamedTuple

import idode_gin
from idode_gin import checks
from idode_gin.feed import image_cache, image_fingerprints
from idode_gin.processes import output

EXIT_TO_FIX = 1
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "gin-config", "seqio"),
    *("tensorflow", "tensorflow-datasets"),
)
_OWN = "idode-gin"
_LEAST_FREE = 2 * 2**30  # a checkpoint of a published model with its optimizer has 1 to 2 GiB
_LEVELS = 3  # folders from a data folder to a dataset: name, configuration, version
_SECONDS = 5.0


class Finding(NamedTuple):
    """The result of one check; `fix` is "" if nothing is wrong."""

    name: str
    text: str
    fix: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m idode_gin.doctor", description="Check an installation; propose fixes."
    )
    parser.add_argument("--tfds_data_dir", help="data of TensorFlow Datasets; else $TFDS_DATA_DIR")
    parser.add_argument("--coordinator_address", help="host:port of process 0, if it is running")
    parser.add_argument(
        "--compilation_cache_dir", help="what COMPILATION_CACHE_DIR is bound to, if it is"
    )
    parser.add_argument("--version", action="version", version=f"idode_gin {idode_gin.__version__}")
    options = parser.parse_args(arguments)
    data = options.tfds_data_dir or os.environ.get("TFDS_DATA_DIR")
    wrong = 0
    for each in findings(data, options.coordinator_address, options.compilation_cache_dir):
        wrong += bool(each.fix)
        print(f"{'FIX' if each.fix else 'ok':<4}{each.name:<21} {each.text}", flush=True)
        if each.fix:
            print(f"{'':<26}-> {each.fix}", flush=True)
    print(f"{wrong} to fix." if wrong else "Nothing to fix.")
    return EXIT_TO_FIX if wrong else checks.EXIT_DONE


def findings(
    data_dir: str | None, address: str | None, compilation_cache_dir: str | None
) -> Iterator[Finding]:
    """Yield the result of every check. None stands for what the environment has by default."""
    yield from versions()
    yield devices()
    default, images = pathlib.Path("tensorflow_datasets"), ""
    elsewhere = "export IDODE_CACHE_DIR=/another/folder"
    try:
        default = pathlib.Path.home() / default
    except RuntimeError:  # neither HOME nor an entry of the user
        yield Finding("HOME", "is not set", "export HOME=/a/folder/that/you/can/write/to")
    try:
        images = str(image_cache.default_directory())
    except ValueError as error:
        yield Finding("image cache", str(error), elsewhere)
    compiled = compilation_cache_dir or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if compiled:
        fix = "bind COMPILATION_CACHE_DIR, or set JAX_COMPILATION_CACHE_DIR, to another folder"
        yield writable("compilation cache", compiled, fix)
    else:
        yield Finding("compilation cache", "off; JAX_COMPILATION_CACHE_DIR=DIR switches it on")
    if images:
        yield writable("image cache", images, elsewhere)
    yield from datasets(data_dir, default)
    if address:
        yield coordinator(address)
    yield from free_disk([".", *filter(None, (compiled, images, data_dir))])


def versions() -> Iterator[Finding]:
    """Compare the installed versions with what this project and jax require."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, required = platform.python_version(), dict[str, Requirement]()
    for owner in (_OWN, "jax"):
        try:
            about = metadata.metadata(owner)
        except metadata.PackageNotFoundError:
            yield Finding(owner, "is not installed", "pip install --editable . in the clone")
            continue
        for each in map(Requirement, about.get_all("Requires-Dist") or []):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                required.setdefault(each.name, each)
        if owner == _OWN:
            known = SpecifierSet(about["Requires-Python"] or "")
            fix = "" if known.contains(python) else f"make setup with a Python {known}"
            yield Finding("Python", f"{python} at {sys.executable}", fix)
    for name in [*PACKAGES, *(each for each in required if each not in PACKAGES)]:
        wanted = required.get(name, Requirement(name))
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "is not installed", f"pip install '{wanted}'")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            yield Finding(name, f"{found}, not {wanted.specifier}", f"pip install '{wanted}'")
        elif name in PACKAGES:
            yield Finding(name, found)


def devices() -> Finding:
    """Start jax's devices; a backend of JAX_PLATFORMS that is not installed is no traceback."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # of many types: missing plugins, libraries, drivers
        reason = next(iter(str(error).splitlines()), "no reason given")
        if not platforms:
            return Finding("devices", reason, "pip install --force-reinstall jax jaxlib")
        text = f"JAX_PLATFORMS={platforms} names a backend that is not installed or cannot start"
        fix = "unset JAX_PLATFORMS, or install the backend, such as pip install '.[cuda12]'"
        return Finding("devices", f"{text} ({reason})", fix)
    kinds = sorted({f"{each.platform} ({each.device_kind})" for each in found})
    text = f"{len(found)} x {', '.join(kinds)}"
    is_unused = {each.platform for each in found} == {"cpu"} and os.path.exists("/dev/nvidia0")
    if is_unused and "cpu" not in platforms:
        return Finding("devices", f"{text}; an NVIDIA GPU is not used", "pip install '.[cuda12]'")
    return Finding("devices", text)


def writable(name: str, folder: str, fix: str) -> Finding:
    """Check that files can be written to a folder, or the folder be made; makes none."""
    if "://" in folder:
        return Finding(name, f"{folder} (not checked)")
    path = pathlib.Path(os.path.expanduser(folder)).absolute()
    nearest = next(each for each in (path, *path.parents) if os.path.lexists(each))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return Finding(name, f"{path} cannot be written to: {error.strerror} ({nearest})", fix)
    return Finding(name, str(path) if nearest == path else f"{path} (will be made)")


def datasets(folder: str | None, default: pathlib.Path) -> Iterator[Finding]:
    """List the prepared datasets with the fingerprint of each split. `folder` None: `default`."""
    root = pathlib.Path(os.path.expanduser(folder or default))
    if folder and "://" in folder:
        yield Finding("data", f"{folder} (not checked)")
        return
    prepare = "prepare a dataset with python -m tasks.prepare, or name another --tfds_data_dir"
    patterns = ["*/" * depth + "dataset_info.json" for depth in range(2, _LEVELS + 1)]
    folders = {path.parent for pattern in patterns for path in root.glob(pattern)}
    found = sorted(each for each in folders if not _is_hidden(each.relative_to(root)))
    if not found:
        lack = "holds no dataset" if root.is_dir() else "is no folder"
        needed = "" if folder else "; `digits` needs none"
        yield Finding("data", f"{root} {lack}{needed}", prepare if folder else "")
    for path in found:
        name, record = str(path.relative_to(root)), path / image_fingerprints.RECORD
        if not record.exists():
            yield Finding(name, "no fingerprint: not made by tasks.prepare")
            continue
        try:
            splits = json.loads(record.read_bytes())
            notes = (image_fingerprints.RESIZING, image_fingerprints.SPLITTING)
            changes = "".join(f"; {splits.pop(each)}" for each in notes if each in splits)
            known = {k: image_fingerprints.ImageFingerprint.from_dict(v) for k, v in splits.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            yield Finding(name, f"{record} is damaged: {error}", f"remove {path} and prepare it")
            continue
        for split, each in known.items():
            shape = "x".join(map(str, each.image_shape))
            text = (
                f"{split}: {each.num_images} images of {shape}, sha256 {each.sha256[:12]}{changes}"
            )
            yield Finding(name, text)


def _is_hidden(path: pathlib.Path) -> bool:
    """Return whether a part of a path is hidden, such as what `tasks.prepare` has not finished."""
    return any(part.startswith(".") for part in path.parts)


def coordinator(address: str) -> Finding:
    """Connect to process 0, which listens while it runs."""
    try:
        parts = urllib.parse.urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        fix = "write --coordinator_address=HOST:PORT, such as node1:12345"
        return Finding("coordinator", f"{address!r} is no host and port", fix)
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        fix = "start process 0 first; then check the name, the port and the firewall between them"
        return Finding("coordinator", f"{address} cannot be reached: {error}", fix)
    return Finding("coordinator", f"{address} answers")


def free_disk(folders: Sequence[str]) -> Iterator[Finding]:
    """Report the free space of each file system that the folders lie on."""
    seen = set[int]()
    for folder in folders:
        path = pathlib.Path(os.path.expanduser(folder)).absolute()
        if "://" in folder:
            continue
        path = next(each for each in (path, *path.parents) if os.path.exists(each))
        if (device := path.stat().st_dev) in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(path).free
        fix = "remove old checkpoints, or write to another disk" if free < _LEAST_FREE else ""
        yield Finding("free disk", f"{free / 2**30:.1f} GiB at {path}", fix)


if __name__ == "__main__":
    output.make_safe()
    sys.exit(output.exit_code(main))
