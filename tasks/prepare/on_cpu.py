"""TensorFlow and TFDS, imported when something is read or written: that takes 5 to 10 s."""

import functools
import os
from typing import Any


@functools.cache
def tensorflow() -> Any:
    """Return TensorFlow without its log lines about devices, and without GPUs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf


@functools.cache
def tfds() -> Any:
    """Return TensorFlow Datasets without its progress bars."""
    tensorflow()
    import tensorflow_datasets

    tensorflow_datasets.disable_progress_bar()
    return tensorflow_datasets
