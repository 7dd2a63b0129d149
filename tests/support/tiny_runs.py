"""Runs of the tiny model, and their outcome without what interruptions may change."""

import json

import tiny

from idode_gin.reports import metrics


def run(model_dir, train_steps=6, *, model=None, dataset=None, **changes):
    trainer = tiny.trainer(model_dir, train_steps, **changes)
    return trainer.run(model or tiny.model(), dataset or tiny.config(), tiny.config(8))


def rows(model_dir):
    return [metrics.reproducible(row) for row in metrics.read_rows(model_dir / "metrics.jsonl")]


def outcome(model_dir):
    """Summary and rows without the fields that interruptions may change."""
    summary = json.loads((model_dir / "summary.json").read_text())
    names = ("exit_reason", "step", "bpd", "bpd_stderr", "params_sha256", "ema_sha256")
    return [summary[name] for name in names], rows(model_dir)
