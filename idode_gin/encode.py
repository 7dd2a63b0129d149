"""Takes images to their latents at the noise end of the ODE, and back.

    python -m idode_gin.encode --gin_file=gin_configs/experiments/digits_encode.gin

Set the checkpoint and where results go with

    --gin.CHECKPOINT_PATH="'runs/a'" --gin.ENCODE_OUTPUT_DIR="'runs/a/encode'"
"""

if __name__ == "__main__":
    # Above the imports, so that --help and a misspelt flag answer at once; and what runs is the
    # module that gin files import, not this second copy of it.
    import sys

    from idode_gin.runtime import preemption

    with preemption.starting():
        from idode_gin import gin_utils

        sys.exit(gin_utils.run("idode_gin.encode", "encode", __doc__))

from idode_gin import gin_utils
from idode_gin.encoder import Encoder
from idode_gin.models import DiffusionODE
from idode_gin.runtime import checkpoints, compilation_cache
from idode_gin.runtime.data import DatasetConfig


def encode(
    *,
    model: DiffusionODE,
    dataset_cfg: DatasetConfig,
    encoder: Encoder,
    compilation_cache_dir: str | None = None,
    dry_run: bool = False,
) -> None:
    """Encodes images with a checkpoint, and takes them back.

    Args:
        model: what was trained.
        dataset_cfg: the split that images are taken of.
        encoder: checkpoint, images and output directory.
        compilation_cache_dir: see `compilation_cache.use`.
        dry_run: only say what would be done. Set by the flag --dry_run.
    """
    gin_utils.check_folder(encoder.output_dir, "encode", "ENCODE_OUTPUT_DIR")
    if dry_run:
        print(encoder.dry_run(model, dataset_cfg))
        return
    compilation_cache.use(compilation_cache_dir)
    checkpoints.find(encoder.checkpoint_path)
    gin_utils.write_configs(encoder.output_dir, "ENCODE_OUTPUT_DIR")
    encoder.run(model, dataset_cfg)
