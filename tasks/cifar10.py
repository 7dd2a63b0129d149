"""Tasks `cifar10`, `cifar10_aug` and `cifar10_aug_with_channel`: 32 x 32 x 3, 8 bits.

50,000 training and 10,000 test images, from TensorFlow Datasets' files of cifar10 3.0.2. The
augmented ones mirror and turn the training images, the last also shuffles their channels, and tell
the network by one bit whether anything was done.
"""

from idode_gin.feed.augmentation import Augmentation
from tasks.support.registration import add_task
from tasks.support.sources import AugmentedSource, TfdsImages
from tasks.support.variants import CIFAR10

TASKS = ("cifar10", "cifar10_aug", "cifar10_aug_with_channel")

add_task("cifar10", TfdsImages(CIFAR10))
add_task("cifar10_aug", AugmentedSource(TfdsImages(CIFAR10), Augmentation()))
add_task(
    "cifar10_aug_with_channel", AugmentedSource(TfdsImages(CIFAR10), Augmentation(channels=True))
)
