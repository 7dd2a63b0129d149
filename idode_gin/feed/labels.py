"""Class labels of images, and the numbers that condition a network on them."""

from collections.abc import Sequence

import numpy as np

_SHOWN = 10


def check(
    labels: np.ndarray | None,
    num_classes: int,
    num_images: int,
    what: str = "`label`",
    names: Sequence[str] = (),
) -> np.ndarray:
    """Return labels as int32 `[N]`, from integers `[N]` or `[N, 1]`; `names` are the classes'.

    Raises:
        ValueError: naming `what` has them, if there are none, or they are not one integer in
            `0..num_classes-1` for each of the N images.
    """
    if labels is None:
        raise ValueError(
            f"{what} must give a class for each image, because the model is conditioned on one of "
            f"{among(num_classes, names)}, got no labels. Give them, or use a model that was "
            "trained without: NUM_CLASSES = 0."
        )
    given = np.asarray(labels)
    if given.shape not in ((num_images,), (num_images, 1)) or given.dtype.kind not in "iu":
        raise ValueError(
            f"{what} must have one integer label for each of {num_images} images, got "
            f"{given.dtype} {list(given.shape)}. Number the classes {listed(num_classes, names)}."
        )
    given = given.reshape(num_images)
    outside = np.flatnonzero((given < 0) | (given >= num_classes))
    if len(outside):
        raise ValueError(
            f"{what} must have labels in 0..{num_classes - 1}, because the model is conditioned on "
            f"one of {among(num_classes, names)}, got {given[outside[0]]} for image {outside[0]}. "
            "Set NUM_CLASSES to the dataset's own, or use the classes that the model was trained "
            "with."
        )
    return given.astype(np.int32)


def listed(num_classes: int, names: Sequence[str] = ()) -> str:
    """Return the classes in words: `0 cat, 1 dog`, of many the first; `0 to 9` without names."""
    if list(names) in ([], list(map(str, range(num_classes)))):
        return f"0 to {num_classes - 1}"
    shown = [f"{number} {name}" for number, name in enumerate(names[:_SHOWN])]
    return ", ".join(shown) + (f" … {num_classes - 1} {names[-1]}" if names[_SHOWN:] else "")


def among(num_classes: int, names: Sequence[str] = ()) -> str:
    """Return the number of classes, and their names if they have any, as text."""
    named = listed(num_classes, names)
    return f"{num_classes} classes" + ("" if named.startswith("0 to ") else f" ({named})")


def joined(conditioning: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Append one number per class, 1 for an image's own: `[..., K]`, `[...]` -> `[..., K + C]`."""
    classes = (labels[..., None] == np.arange(num_classes)).astype(np.float32)
    return np.concatenate([conditioning, classes], axis=-1)
