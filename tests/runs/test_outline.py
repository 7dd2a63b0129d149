"""What a dry run says of a model."""

import numpy as np
import tiny

from idode_gin.runs import descriptions
from idode_gin.schedules.time.linear import Linear


def test_parts_and_parameters_of_a_model_in_outline():
    long = type("Linear" * 9, (Linear,), {})()
    text = descriptions.outline(tiny.model(time=long), {"a": np.ones((2, 3))})
    first, *more, total = text.splitlines()
    assert first.startswith("DiffusionODE: ")
    assert more
    assert all(each.startswith("  ") for each in more)
    assert total == "Total: 6 parameters"
