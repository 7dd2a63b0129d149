"""Parameters of the recorded VDM cases, by a rule: multiples of a power of two."""

from collections.abc import Mapping

import numpy as np


def params(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return leaves by their published names, drawn in the order of the names; exact in float32."""
    random = np.random.RandomState(seed)  # its integers are the same in every NumPy
    return {name: _leaf(random, name, tuple(shapes[name])) for name in sorted(shapes)}


def _leaf(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    unit = (2 * random.randint(-256, 256, shape) + 1) / 512  # uniform in (-1, 1), never zero
    if name in _SCALARS:
        return (_SCALARS[name] + unit / 4).astype(np.float32)
    if name.startswith("gamma/"):  # both signs, of which the published code takes the modulus
        return (_LARGEST.get(name, 4) * unit).astype(np.float32)
    if name.endswith("scale"):
        return (1 + unit / 8).astype(np.float32)
    if name.endswith("bias"):
        return (unit / 8).astype(np.float32)
    fan_in = np.prod(shape[:-1])
    return (unit * 2.0 ** -np.floor(np.log2(fan_in) / 2)).astype(np.float32)


_SCALARS = {"gamma/w": -17.0, "gamma/b": -12.5, "gamma/l1/kernel": -6.0, "gamma/l1/bias": -4.0}
_LARGEST = {"gamma/l2/kernel": 8, "gamma/l3/kernel": 16}
