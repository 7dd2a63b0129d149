"""Evaluate, sample and interpolate with a random network, to be interrupted.

    python interrupted.py evaluate|sample|interpolate OUTPUT_DIR BATCH_SIZE [INDEX PROCESSES PORT]
    python interrupted.py memory OUTPUT_DIR NUMBER

The first form writes a part after every batch; the second prints the bytes that `memory` returns.
"""

import dataclasses
import pathlib
import re
import sys
import time

import jax
import numpy as np
import tiny

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.evaluation import evaluator, results
from idode_gin.feed import data, image_fingerprints, loading
from idode_gin.generation import interpolator, sampler
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses import base
from idode_gin.losses.bound import VariationalBound
from idode_gin.runs import partial_results, run_inputs
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.fixed_grid import FixedGrid

ROOT = pathlib.Path(__file__).parents[2]
NUMBER = 41
TRAINED_ON = {"dataset": "made", "dataset_sha256": "12"}


def prepare(replace=setattr):
    """Replace the checkpoint and the data by generated ones."""

    def load_params(model, image_shape, *_):
        params, facts = model.init(jax.random.key(0), image_shape), TRAINED_ON
        return saving.RestoredParams(params, 3, pathlib.Path("made"), facts)

    replace(run_inputs, "load_params", load_params)
    replace(saving, "find", pathlib.Path)
    whole = tiny.split(number=NUMBER)
    replace(loading, "load_split", lambda config: whole.some(config.num_images or NUMBER))
    replace(results, "draw", lambda *_: None)
    replace(partial_results, "WRITE_PERIOD", 0.0)


def evaluate(output, batch_size, **changes):
    fields = {
        "output_dir": str(output),
        "checkpoint_path": "made",
        "likelihoods": {
            "tn": ODELikelihood(dequantizer=TruncatedNormal(), solver=FixedGrid(steps=2))
        },
        "variational_bound": VariationalBound(num_times=2),
        "solve_size": 2,
    }
    made = evaluator.Evaluator(**(fields | changes))
    return made.run(tiny.model(), tiny.config(batch_size))


def sample(output, batch_size, **changes):
    fields = {
        "output_dir": str(output),
        "checkpoint_path": "made",
        "method": ODESampler(solver=FixedGrid(steps=2)),
        "num_samples": NUMBER,
        "batch_size": batch_size,
        "solve_size": 2,
    }
    return sampler.Sampler(**(fields | changes)).run(tiny.model(image_shape=tiny.SHAPE))


def interpolate(output, batch_size):
    made = interpolator.Interpolator(
        output_dir=str(output),
        checkpoint_path="made",
        method=ODESampler(solver=FixedGrid(steps=2)),
        pairs=((0, 1), (2, 3), (5, 4)),
        num_points=3,
    )
    model = tiny.model(image_shape=tiny.SHAPE)
    print("devices", jax.device_count())
    return made.run(model, tiny.config(batch_size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanPixel(base.AbstractBound):
    """Costs nothing; is not a bound."""

    def num_evaluations(self):
        return 1

    def __call__(self, field, end, time, x, keys):
        mean = x.astype(np.float32).mean(axis=(1, 2, 3))
        return base.BoundTerms(reconstruction=mean, prior=mean, diffusion=mean)


def memory(output, number):
    """Return peak anonymous memory, in bytes, while a memory-mapped split is scored."""
    output.mkdir(parents=True, exist_ok=True)
    shape = (int(number), 32, 32, 3)
    np.lib.format.open_memmap(output / "images.npy", "w+", np.uint8, shape)  # zeros: a sparse file
    few = np.zeros((1, *shape[1:]), np.uint8)
    split = data.ImageSplit(
        images=np.load(output / "images.npy", mmap_mode="r"),
        conditioning=np.zeros((shape[0], 1), np.float32),
        name="made",
        split="train",
        known_fingerprint=dataclasses.replace(
            image_fingerprints.fingerprint(few), num_images=shape[0]
        ),
    )
    loading.load_split = lambda _: split
    most, add = [0], partial_results.PartialResults.add

    def watched(*arguments):
        add(*arguments)
        status = pathlib.Path("/proc/self/status").read_text()
        most[0] = max(most[0], 1024 * int(re.search(r"RssAnon:\s*(\d+) kB", status)[1]))

    partial_results.PartialResults.add = watched
    evaluate(
        output,
        512,
        likelihoods={},
        variational_bound=MeanPixel(),
        histogram_split=None,
        solve_size=512,
    )
    return most[0]


def slow(method):
    def after_a_pause(*arguments):
        time.sleep(0.1)
        method(*arguments)

    return after_a_pause


def main(what, output, size, *process):
    jax.config.update("jax_platforms", "cpu")
    if process:
        index, number, port = process
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", int(number), int(index))
        # A request to stop takes longer to reach the other process than these batches take.
        partial_results.PartialResults.add = slow(partial_results.PartialResults.add)
    prepare()
    try:
        known = (evaluate, sample, interpolate, memory)
        run = {each.__name__: each for each in known}[what]
        print(run(pathlib.Path(output), int(size)))
    except (checks.Preempted, ValueError) as error:
        print(error)
        return checks.EXIT_PREEMPTED if isinstance(error, checks.Preempted) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
