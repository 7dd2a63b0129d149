"""TensorFlow and TFDS, imported when something is read or written: that takes 5 to 10 s."""

import functools
from typing import Any

from idode_gin.feed import lean_tensorflow, quiet


@functools.cache
def tensorflow() -> Any:
    """Return TensorFlow without its log lines about devices, and without GPUs."""
    quiet.silence_tensorflow()
    lean_tensorflow.load()
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
