"""Draw images from a checkpoint: PNG files, an `.npz`, and a grid in one picture.

    python -m idode_gin.sample --gin_file=gin_configs/experiments/digits_sample.gin

A run directory is enough: it holds the configuration of its model, task and objective.

    python -m idode_gin.sample --gin.CHECKPOINT_PATH="'runs/a'"

Files and bindings that are given replace parts of it. The output goes to `samples`
in the run directory, or to --gin.SAMPLE_OUTPUT_DIR="'…'".
"""

if __name__ == "__main__":  # above the imports, so that --help answers at once
    from idode_gin.configs import programs

    programs.main("idode_gin.sample", "sample", __doc__)

from idode_gin.checkpoints import saving
from idode_gin.configs import outputs
from idode_gin.devices import compilation_cache
from idode_gin.generation.sampler import Sampler
from idode_gin.models import DiffusionODE
from idode_gin.reports.paths import StoredPath


def sample(
    *,
    model: DiffusionODE,
    sampler: Sampler,
    compilation_cache_dir: StoredPath | None = None,
    dry_run: bool | str = False,
) -> str | None:
    """Draw images from a checkpoint.

    Args:
        model: the model that was trained.
        sampler: checkpoint, number of images and output directory.
        compilation_cache_dir: see `compilation_cache.use`.
        dry_run: only print what would be done, "full" in full. Set by the flag --dry_run.

    Returns:
        The output directory; None if nothing was to be done.
    """
    outputs.check_folder(sampler.output_dir, "sample", "SAMPLE_OUTPUT_DIR")
    if dry_run:
        print(sampler.dry_run(model, full=dry_run == "full"))
        return None
    compilation_cache.use(compilation_cache_dir)
    saving.find(sampler.checkpoint_path)
    outputs.check_agreement()  # before anything is written
    with outputs.begun(sampler.output_dir, "SAMPLE_OUTPUT_DIR"):
        sampler.run(model)
    return sampler.output_dir
