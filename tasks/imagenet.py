"""Tasks `imagenet32_old`, `imagenet32_new`, `imagenet64_old`, `imagenet64_new`: 3 x 8 bits.

Two ways to shrink ImageNet's photographs, whose bits per dim cannot be compared: the old one by
van den Oord et al., the new, anti-aliased one by Chrabaszcz et al. From files in the format of
TensorFlow Datasets.
"""

from tasks.support import variants
from tasks.support.registration import add_task
from tasks.support.sources import TfdsImages

TASKS = ("imagenet32_old", "imagenet32_new", "imagenet64_old", "imagenet64_new")

add_task("imagenet32_old", TfdsImages(variants.IMAGENET32_OLD))
add_task("imagenet32_new", TfdsImages(variants.IMAGENET32_NEW))
add_task("imagenet64_old", TfdsImages(variants.IMAGENET64_OLD))
add_task("imagenet64_new", TfdsImages(variants.IMAGENET64_NEW))
