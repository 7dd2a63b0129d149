"""Bytes on each device of the published CIFAR-10 network with AdamW, for several meshes.

    python -m benchmarks.partitioning [--mesh 8x1x1 4x2x1 2x4x1 1x8x1 4x1x2] [--channels=128]

A mesh is devices along data, fsdp and model; none of them need be there. Gradients are left out,
and so is what the network's activations take, which `--dry_run` estimates.
"""

import argparse
from typing import Any

import jax

from idode_gin import types
from idode_gin.devices import accounting
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.networks.unet import UNet
from idode_gin.training import train_state
from idode_gin.training.optimizers import AdamW

MESHES = ("8x1x1", "4x2x1", "2x4x1", "1x8x1", "4x1x2", "1x4x2")
SHAPE = (32, 32, 3)


def held(network: UNet, mesh: str) -> dict[str, int]:
    """Bytes of each part of a training state on one device."""
    sizes = tuple(int(size) for size in mesh.split("x"))
    partitioner = PjitPartitioner(mesh_shape=sizes).without_devices()

    def init() -> types.TrainState:
        return train_state.create(network.init(jax.random.key(0), SHAPE), AdamW().build(), ())

    shapes = jax.eval_shape(init)
    shardings = partitioner.state_sharding(shapes, network.logical_axes(SHAPE))
    state: Any = jax.tree.map(
        lambda leaf, each: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=each),
        shapes,
        shardings,
    )
    parts = {"params": state.params, "ema": state.ema, "optimizer": state.opt_state}
    return {name: accounting.bytes_per_device(part) for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mesh", nargs="+", default=MESHES)
    parser.add_argument("--channels", type=int, default=128)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    network = UNet(channels=options.channels)
    print(f"{'data x fsdp x model':<20}{'params':>10}{'ema':>10}{'optimizer':>10}{'sum':>10}  MiB")
    for mesh in options.mesh:
        sizes = list(held(network, mesh).values())
        cells = "".join(f"{size / accounting.MIB:>10.2f}" for size in (*sizes, sum(sizes)))
        print(f"{mesh:<20}{cells}", flush=True)


if __name__ == "__main__":
    main()
