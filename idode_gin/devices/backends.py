"""Starting and describing jax's devices."""

from typing import Any

import jax


def start() -> None:
    """Start the devices that JAX_PLATFORMS names, or the default ones.

    Raises:
        ValueError: if there are none: the backend is not installed, or finds no device.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax has a bare `assert` for one without any
        named = getattr(jax.config, "jax_platforms", None)
        reason = (str(error).strip().splitlines() or ["it is not installed, or finds no device"])[0]
        raise ValueError(
            f"jax cannot use {f'JAX_PLATFORMS={named}' if named else 'its devices'}: {reason}. "
            "Install jax for this hardware, such as jax[cuda13], or set JAX_PLATFORMS=cpu."
        ) from error


def facts() -> dict[str, Any]:
    """Return platform, kind and number of all devices, processes and jax's version, for JSON."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }


def described() -> str:
    """Return `facts` as text, such as `4 x NVIDIA H100 (gpu), 2 processes, jax 0.10.2`."""
    found = facts()
    is_named = found["kind"].lower() == found["platform"]
    kind = found["kind"] if is_named else f"{found['kind']} ({found['platform']})"
    count = found["processes"]
    processes = f"{count} process{'es' if count > 1 else ''}"
    return f"{found['count']} x {kind}, {processes}, jax {found['jax']}"
