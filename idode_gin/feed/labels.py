"""Class labels of images, and the numbers that condition a network on them."""

import numpy as np


def check(
    labels: np.ndarray | None, num_classes: int, num_images: int, what: str = "`label`"
) -> np.ndarray:
    """Return labels as int32 `[N]`, from integers `[N]` or `[N, 1]`.

    Raises:
        ValueError: naming `what` has them, if there are none, or they are not one integer in
            `0..num_classes-1` for each of the N images.
    """
    if labels is None:
        raise ValueError(
            f"{what} must give a class for each image, because the model is conditioned on one of "
            f"{num_classes} classes, got no labels. Give them, or use a model that was trained "
            "without: NUM_CLASSES = 0."
        )
    given = np.asarray(labels)
    if given.shape not in ((num_images,), (num_images, 1)) or given.dtype.kind not in "iu":
        raise ValueError(
            f"{what} must have one integer label for each of {num_images} images, got "
            f"{given.dtype} {list(given.shape)}. Number the classes 0 to {num_classes - 1}."
        )
    given = given.reshape(num_images)
    outside = np.flatnonzero((given < 0) | (given >= num_classes))
    if len(outside):
        raise ValueError(
            f"{what} must have labels in 0..{num_classes - 1}, because the model is conditioned on "
            f"one of {num_classes} classes, got {given[outside[0]]} for image {outside[0]}. Set "
            "NUM_CLASSES to the dataset's own, or use the classes that the model was trained with."
        )
    return given.astype(np.int32)


def joined(conditioning: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Append one number per class, 1 for an image's own: `[..., K]`, `[...]` -> `[..., K + C]`."""
    classes = (labels[..., None] == np.arange(num_classes)).astype(np.float32)
    return np.concatenate([conditioning, classes], axis=-1)
