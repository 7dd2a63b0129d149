"""Score checkpoints on one split: bits per dim of every image, by several bounds.

    python -m idode_gin.eval --gin_file=gin_configs/experiments/digits_eval.gin

A run directory is enough: it holds the configuration of its model, task and objective.

    python -m idode_gin.eval --gin.CHECKPOINT_PATH="'runs/a'"

Files and bindings that are given replace parts of it. The output goes to `eval/<task>_<split>`
in the run directory, of a series to `eval/<task>_<split>_curve`, or to --gin.EVAL_OUTPUT_DIR="'…'".

Add --gin_file=gin_configs/checkpoints/all.gin for every checkpoint of the run, or
--gin_file=gin_configs/checkpoints/watch.gin to wait for new ones too.
"""

if __name__ == "__main__":  # above the imports, so that --help answers at once
    from idode_gin.configs import programs

    programs.main("idode_gin.eval", "evaluate", __doc__)

from idode_gin.configs import outputs
from idode_gin.devices import compilation_cache
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.feed.data import DatasetConfig
from idode_gin.models import DiffusionODE
from idode_gin.reports.paths import StoredPath


def evaluate(
    *,
    model: DiffusionODE,
    dataset_cfg: DatasetConfig,
    evaluator: Evaluator,
    compilation_cache_dir: StoredPath | None = None,
    dry_run: bool | str = False,
) -> str | None:
    """Evaluate a checkpoint, or a series of checkpoints.

    Args:
        model: the model that was trained.
        dataset_cfg: the images; each is scored once, whatever the batch size.
        evaluator: checkpoints, bounds and output directory.
        compilation_cache_dir: see `compilation_cache.use`.
        dry_run: only print what would be done, "full" in full. Set by the flag --dry_run.

    Returns:
        The output directory; None if nothing was to be done.
    """
    outputs.check_folder(evaluator.output_dir, "eval", "EVAL_OUTPUT_DIR")
    if dry_run:
        print(evaluator.dry_run(model, dataset_cfg, full=dry_run == "full"))
        return None
    compilation_cache.use(compilation_cache_dir)
    evaluator.check_path()
    evaluator.check_results(model, dataset_cfg)
    outputs.check_agreement()  # before anything is written
    with outputs.begun(evaluator.output_dir, "EVAL_OUTPUT_DIR") as digest:
        evaluator.run(model, dataset_cfg, digest)
    return evaluator.output_dir
