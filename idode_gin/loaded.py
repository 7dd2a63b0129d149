"""Load a trained model: `idode_gin.load("runs/a")`."""

import pathlib
import re
from typing import Any

from idode_gin import checks
from idode_gin.checkpoints import names, saving
from idode_gin.configs import from_training, gin_internals
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import data
from idode_gin.models import DiffusionODE
from idode_gin.reports import differences, paths
from idode_gin.runs import run_inputs
from idode_gin.trained import TrainedModel


def load(path: str | pathlib.Path, step: int | None = None, ema: bool = True) -> TrainedModel:
    """Load a trained model from its run directory.

    The model is built from the configuration in the run directory. gin's configuration in this
    process stays as it is, and so do its devices.

    Args:
        path: a run directory, or one `checkpoint_<step>` in it.
        step: of the checkpoint; None takes the newest undamaged one.
        ema: load the averaged parameters, as the programs do, rather than the last ones.

    Raises:
        ValueError: if there is no run or checkpoint, it is damaged, or this version or environment
            cannot build its model.
    """
    path = paths.stored(path, "The path of a run")
    if step is not None:
        checks.check_integer("step", step, at_least=0)
        run, path = paths.of(path), saving.checkpoint_path(path, step)
        if names.is_checkpoint(run.name) and not path.exists():
            raise ValueError(f"`step` needs a run directory, got the checkpoint {run}.")
    source = from_training.config_of(path)
    saving.find(path)
    with gin_internals.isolated():
        model, dataset = _built(source)
        # of a file that includes others, everything that these bind
        text = source.read_text("utf-8")
        text = gin_internals.given_text() if re.search(r"^\s*include\b", text, re.M) else text
    if not isinstance(model, DiffusionODE) or model.image_shape is None:
        raise ValueError(f"{source} must declare a DiffusionODE with an image_shape, got {model}.")
    shape, partitioner = model.image_shape, PjitPartitioner()
    restored = run_inputs.load_params(model, shape, str(path), ema, partitioner.replicated)
    return TrainedModel(
        model=model.at(restored.params),
        params=restored.params,
        config=differences.bindings(text),
        step=restored.step,
        path=restored.path,
        partitioner=partitioner,
        class_names=tuple(restored.facts.get("class_names", ())),
        dataset=data.DatasetConfig(**dataset, split="test", batch_size=1),
    )


def _built(source: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    try:
        return from_training.model_and_dataset_of(source)
    except (ValueError, TypeError, SyntaxError, ImportError, AttributeError) as error:
        raise ValueError(
            f"The model of {source.parent} cannot be built from {source.name}: {error} Modules of "
            "your own must be on sys.path. If another version of idode_gin wrote the run, load it "
            "with that version."
        ) from error
