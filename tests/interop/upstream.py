"""Facts about upstream t5x that the adapter relies on, and a stand-in for its base class.

The facts were read from its source at `FACTS["commit"]`. Where t5x can be imported, a test compares
them with it. `parameters` are those of what we implement, call or bind; `calls` are arguments by
position, as its trainer and its programs call a model.
"""

import abc
import json
import pathlib
from typing import Any

FACTS: dict[str, Any] = json.loads(pathlib.Path(__file__).with_name("t5x_facts.json").read_text())


def stand_in() -> type:
    """Return a class with the abstract methods of t5x's `BaseModel`, and its other two."""

    def __init__(self, optimizer_def):
        self.optimizer_def = optimizer_def

    def eval_fn(self, params, batch):
        return self.loss_fn(params=params, batch=batch, dropout_rng=None)

    def predict_batch(self, params, batch, rng=None):
        return self.predict_batch_with_aux(params=params, batch=batch, rng=rng)[0]

    def missing(self):
        raise NotImplementedError

    methods = {name: abc.abstractmethod(missing) for name in FACTS["abstract"]}
    others = {"__init__": __init__, "eval_fn": eval_fn, "predict_batch": predict_batch}
    return abc.ABCMeta("StandIn", (), methods | others)
