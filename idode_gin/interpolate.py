"""Interpolate between pairs of images through their latents.

    python -m idode_gin.interpolate --gin_file=gin_configs/experiments/digits_interpolate.gin

A run directory is enough: it holds the configuration of its model, task and objective.

    python -m idode_gin.interpolate --gin.CHECKPOINT_PATH="'runs/a'"

Files and bindings that are given replace parts of it. The output goes to
`interpolated/<task>_<split>` in the run directory, or to --gin.INTERPOLATE_OUTPUT_DIR="'…'".
"""

if __name__ == "__main__":  # above the imports, so that --help answers at once
    from idode_gin.configs import programs

    programs.main("idode_gin.interpolate", "interpolate", __doc__)

from idode_gin.checkpoints import saving
from idode_gin.configs import outputs
from idode_gin.devices import compilation_cache
from idode_gin.feed.data import DatasetConfig
from idode_gin.generation.interpolator import Interpolator
from idode_gin.models import DiffusionODE
from idode_gin.reports.paths import StoredPath


def interpolate(
    *,
    model: DiffusionODE,
    dataset_cfg: DatasetConfig,
    interpolator: Interpolator,
    compilation_cache_dir: StoredPath | None = None,
    dry_run: bool | str = False,
) -> str | None:
    """Interpolate between images with a checkpoint.

    Args:
        model: the model that was trained.
        dataset_cfg: the split that images are taken from.
        interpolator: checkpoint, images and output directory.
        compilation_cache_dir: see `compilation_cache.use`.
        dry_run: only print what would be done, "full" in full. Set by the flag --dry_run.

    Returns:
        The output directory; None if nothing was to be done.
    """
    outputs.check_folder(interpolator.output_dir, "interpolate", "INTERPOLATE_OUTPUT_DIR")
    if dry_run:
        print(interpolator.dry_run(model, dataset_cfg, full=dry_run == "full"))
        return None
    compilation_cache.use(compilation_cache_dir)
    saving.find(interpolator.checkpoint_path)
    outputs.check_agreement()  # before anything is written
    with outputs.begun(interpolator.output_dir, "INTERPOLATE_OUTPUT_DIR"):
        interpolator.run(model, dataset_cfg)
    return interpolator.output_dir
