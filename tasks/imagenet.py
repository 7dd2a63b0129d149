"""Tasks `imagenet32_old`, `imagenet32_new`, `imagenet64_old`, `imagenet64_new`: 3 x 8 bits.

ImageNet's photographs, downsampled in two ways whose bits per dim cannot be compared: the old one
by van den Oord et al., the new, anti-aliased one by Chrabaszcz et al. Read from files in the format
of TensorFlow Datasets.
"""

from tasks.formats import published
from tasks.support.registration import add_task
from tasks.support.tfds_images import TfdsImages

_VARIANTS = [each for each in published.VARIANTS if each.name.startswith("imagenet")]
TASKS = tuple(variant.name for variant in _VARIANTS)

for variant in _VARIANTS:
    add_task(variant.name, TfdsImages(variant))
