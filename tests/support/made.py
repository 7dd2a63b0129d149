"""A split whose pixels hold the index of their image."""

import numpy as np

from idode_gin.feed import data


def split(num_images=7, shape=(2, 3, 1), dtype=np.uint8) -> data.ImageSplit:
    """Return images whose every pixel is their index."""
    images = np.broadcast_to(
        np.arange(num_images).reshape(-1, 1, 1, 1), (num_images, *shape)
    ).astype(dtype)
    rows = np.arange(num_images, dtype=np.float32)[:, None]
    return data.ImageSplit(images=images, conditioning=rows, name="made", split="train")


def config(**changes) -> data.DatasetConfig:
    defaults = {"mixture_or_task_name": "made", "split": "train", "batch_size": 3}
    return data.DatasetConfig(**(defaults | changes))
