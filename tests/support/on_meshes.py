"""Run the same few steps on several meshes of eight CPU devices, or score on any number.

    python on_meshes.py steps OUT.npz NETWORK MESH:MICROBATCHES …
    python on_meshes.py bytes MESH …
    python on_meshes.py score CHECKPOINT FOLDER MESH

A mesh is three numbers, such as 2x4x1. `steps` writes the parameters after the last step; `bytes`
prints as JSON the bytes of each part of a state on the first device; `score` evaluates and samples.
"""

import json
import math
import sys

import jax
import numpy as np
import optax
import tiny

from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.devices import partitioning
from idode_gin.evaluation import evaluator
from idode_gin.feed import batches, loading
from idode_gin.generation import sampler
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.losses.bound import VariationalBound
from idode_gin.networks.unet import UNet
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.training import optimizers

BATCH_SIZE = 32
STEPS = 5
NETWORKS = {
    "affine": tiny.AffineNetwork(),
    "unet": UNet(channels=8, levels=0, groups=2, fourier_exponents=(1,), attention_heads=2),
    "wide": UNet(channels=64, levels=1),
}


def partitioner(mesh):
    return partitioning.PjitPartitioner(mesh_shape=tuple(map(int, mesh.split("x"))))


def program(network, mesh, microbatches=1, optimizer=None):
    model = tiny.model(network=NETWORKS[network], image_shape=tiny.SHAPE)
    trainer = tiny.trainer(
        "unused",
        optimizer=optimizer or optax.sgd(0.1, momentum=0.9),
        num_microbatches=microbatches,
        partitioner=partitioner(mesh),
    )
    batch = batches.train_batch(tiny.split(), tiny.config(BATCH_SIZE), 0)
    return trainer.program(model, tiny.SHAPE, batch)


def named(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def steps(network, mesh, microbatches):
    """Return the parameters and their average after a few steps, by name."""
    made = program(network, mesh, microbatches)
    state = made.init()
    for step in range(STEPS):
        batch = batches.train_batch(tiny.split(), tiny.config(BATCH_SIZE), step)
        state, _ = made.step(state, partitioner(mesh).put_batch(batch, BATCH_SIZE))
    return named({"params": state.params, "ema": state.ema})


def bytes_held(mesh):
    """Return the bytes of each part of a state on the first device, counted from arrays."""
    optimizer = optimizers.AdamW(clip_norm=1.0, accumulation_steps=2).build()
    shapes = program("wide", mesh, optimizer=optimizer).abstract_state

    def held(tree):
        arrays = jax.tree.map(
            lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), tree
        )
        shards = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(arrays)]
        return sum(each.nbytes for each in shards)

    return {part: held(getattr(shapes, part)) for part in ("params", "ema", "opt_state")}


def score(checkpoint, folder, mesh):
    """Evaluate and sample, into two folders."""
    solver = DormandPrince(rtol=1e-5, atol=1e-5)
    model = tiny.model(image_shape=tiny.SHAPE)
    evaluator.Evaluator(
        output_dir=f"{folder}/eval",
        checkpoint_path=checkpoint,
        likelihoods={
            "adaptive": ODELikelihood(dequantizer=TruncatedNormal(), solver=solver),
            "chosen": ODELikelihood(dequantizer=TruncatedNormal()),
        },
        pilot=Pilot(num_images=4),
        variational_bound=VariationalBound(num_times=2),
        solve_size=2,
        partitioner=partitioner(mesh),
    ).run(model, tiny.config(8))
    sampler.Sampler(
        output_dir=f"{folder}/samples",
        checkpoint_path=checkpoint,
        method=ODESampler(solver=solver),
        num_samples=9,
        batch_size=8,
        solve_size=2,
        partitioner=partitioner(mesh),
    ).run(model)


def main(kind, *arguments):
    jax.config.update("jax_platforms", "cpu")
    devices = math.prod(map(int, arguments[2].split("x"))) if kind == "score" else 8
    jax.config.update("jax_num_cpu_devices", devices)
    loading.load_split = lambda config: tiny.split(config.mixture_or_task_name)
    if kind == "steps":
        out, network, *cases = arguments
        found = {}
        for case in cases:
            mesh, microbatches = case.split(":")
            after = steps(network, mesh, int(microbatches))
            found |= {f"{case}/{name}": each for name, each in after.items()}
        np.savez(out, **found)
    elif kind == "bytes":
        print(json.dumps({mesh: bytes_held(mesh) for mesh in arguments}))
    else:
        score(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
