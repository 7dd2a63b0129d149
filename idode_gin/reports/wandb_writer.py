"""Metrics to Weights & Biases, where it is installed and asked for."""

import dataclasses
import hashlib
import importlib
import os
from collections.abc import Mapping
from typing import Any, final

from idode_gin.reports.metrics import numbers


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class WandB:
    """Where the rows go beside metrics.jsonl. Credentials are wandb's own affair: `wandb login`.

    A run directory is one run there, restarts included.

    Args:
        project: its name.
        entity: user or team; None is the user's default.
        name: of the run; None is the name of the run directory.

    Raises:
        ValueError: if wandb is not installed, or `project` is empty.
    """

    project: str
    entity: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.project:
            raise ValueError("`WandB.project` must name a project, got an empty string.")
        _wandb()

    def open(self, directory: str | os.PathLike[str], facts: Mapping[str, Any]) -> "WandBWriter":
        """Starts the run, or goes on with it.

        Args:
            directory: the run directory.
            facts: what the run is configured by.
        """
        directory = os.path.abspath(directory)
        run = _wandb().init(
            project=self.project,
            entity=self.entity,
            name=self.name or os.path.basename(directory),
            id=hashlib.sha256(directory.encode()).hexdigest()[:16],
            resume="allow",
            dir=directory,
            config=dict(facts),
        )
        # Rows that a restart writes again would be refused as steps that have passed.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return WandBWriter(run)


class WandBWriter:
    """One open run.

    Args:
        run: wandb's.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs the numbers of a row."""
        self._run.log({**numbers(values), "step": step})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            "WandB writes with the package wandb, which is not installed: pip install wandb, or "
            "leave Trainer.wandb unbound."
        ) from error
