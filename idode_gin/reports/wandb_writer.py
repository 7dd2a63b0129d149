"""Write metrics to Weights & Biases, an optional dependency."""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import secrets
import sys
from collections.abc import Iterator, Mapping
from typing import Any, final

from absl import logging

from idode_gin.reports import files, paths
from idode_gin.reports.metrics import numbers


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class WandB:
    """Settings of Weights & Biases. Log in with `wandb login` first.

    A run directory is one W&B run, restarts included. Its file `wandb_id` holds the run's id.

    Args:
        project: name of the project.
        entity: user or team; None for the user's default.
        name: name of the run; None for the name of the run directory.

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
        """Start or resume the run.

        Args:
            directory: the run directory.
            facts: configuration of the run.

        Raises:
            OSError: if W&B refuses, for example without a login.
        """
        in_bucket = paths.in_bucket(directory)
        directory = os.fspath(directory) if in_bucket else os.path.abspath(directory)
        with _explained():
            run = _wandb().init(
                project=self.project,
                entity=self.entity,
                name=self.name or os.path.basename(directory),
                id=_id(paths.of(directory) / "wandb_id"),
                resume="allow",
                dir=None if in_bucket else directory,  # None: ./wandb, or $WANDB_DIR
                config=dict(facts),
            )
            # Otherwise W&B would refuse rows that a restart writes again, as steps of the past.
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
        return WandBWriter(run)


class WandBWriter:
    """An open W&B run. Its methods raise OSError if W&B fails.

    Args:
        run: run object of wandb.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Log the numbers of a row."""
        with _explained():
            self._run.log({**numbers(values), "step": step})

    def close(self) -> None:
        """End the run; if an error ends it already, that one stays the reason."""
        is_failing = sys.exc_info()[0] is not None
        try:
            with _explained():
                self._run.finish()
        except OSError as error:
            if not is_failing:
                raise
            logging.warning("%s", error)


def _id(file: pathlib.Path) -> str:
    """Return the id that a run directory holds; make one if it holds none."""
    if not file.exists():
        files.write_atomically(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn any error of W&B, which has several types, into an OSError with a way out."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[-200:].rstrip(".") or type(error).__name__
        raise OSError(
            f"Weights & Biases failed: {reason}. Log in by `wandb login`, log to files by "
            "WANDB_MODE=offline, or leave Trainer.wandb unbound."
        ) from error


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            "WandB needs the package wandb, which is not installed: pip install wandb, or leave "
            "Trainer.wandb unbound."
        ) from error
