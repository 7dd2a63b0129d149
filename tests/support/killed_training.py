"""A tiny run that kills itself after a step: `killed_training.py TIME STEP FOLDER`."""

import os
import signal
import sys
import time
import types

import tiny

from idode_gin.checkpoints import saving
from idode_gin.schedules.time.cosine import Cosine
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.linear import Linear, gamma_min_for_levels
from idode_gin.schedules.time.linear_beta import LinearBeta
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.schedules.time.straight import Straight
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.training import meters

LOW = gamma_min_for_levels(tiny.LEVELS)
LEARNED = {
    "LearnedLinear": LearnedLinear(gamma_min=LOW),
    "Monotone": Monotone(gamma_min=LOW, units=8),
    "Tabulated": Tabulated(gamma_min=LOW, bins=4, adapt_period=3),
}
TIMES = LEARNED | {each.__name__: each(gamma_min=LOW) for each in (Linear, Cosine, Straight)}
TIMES["LinearBeta"] = LinearBeta(gamma_min=LOW)


def model(name):
    return tiny.model(time=TIMES[name], image_shape=tiny.SHAPE)


def main(name, step, folder):
    """Train five steps, which save every second, and die by SIGKILL after `step`."""
    after_step = meters.Meters.after_step

    def dying_after_step(measured, at, outputs):
        after_step(measured, at, outputs)
        if at == int(step):
            while not saving.saved_steps(folder):  # which another thread does
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    meters.Meters.after_step = dying_after_step
    tiny.use_tiny_data(types.SimpleNamespace(setattr=setattr))
    tiny.trainer(folder, 5).run(model(name), tiny.config(), tiny.config(8))


if __name__ == "__main__":
    main(*sys.argv[1:])
