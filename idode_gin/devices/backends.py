"""Starting jax's devices."""

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
