"""Run a pilot on one of the CPU devices of this process, and on as many as its images divide by.

Prints as JSON, for several numbers of images, the rows that each device had, and both
reports and local errors.
"""

import json

import jax
import jax.numpy as jnp
import tiny

from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.devices import partitioning
from idode_gin.likelihood import pilot_grids
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot

DEVICES, NUMBERS = 3, (6, 4, 5)


def found(number: int) -> dict:
    model = tiny.model()
    params = jax.device_get(model.init(jax.random.key(0), tiny.SHAPE))
    batch = {
        "image": tiny.split().images[:number],
        "index": jnp.arange(number),
        "conditioning": jnp.zeros((number, model.conditioning_size)),
    }
    rows = set()

    def spread(fn):
        def watched(given, batch):
            rows.add(len(batch["index"]))
            return fn(given, batch)

        return partitioning.over_local_devices(watched)

    pilot = Pilot(tolerance=1e-3, max_steps=128)
    known = model, batch, jax.random.key(1), ODELikelihood(dequantizer=TruncatedNormal())
    both = pilot_grids.undivided, spread
    reports = [pilot.prepared(*known, spread=each)(params)[1]._asdict() for each in both]
    grids = [pilot_grids.Grids(*known, 16, spread=each) for each in both]
    defects = [each.defects(params, 16).tolist() for each in grids]
    return {"rows": sorted(rows), "reports": reports, "defects": defects}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({number: found(number) for number in NUMBERS}))
