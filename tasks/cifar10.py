"""Tasks `cifar10`, `cifar10_aug` and `cifar10_aug_with_channel`: 32 x 32 x 3, 8 bits.

50,000 training and 10,000 test images, from TensorFlow Datasets' files of cifar10 3.0.2. The
augmented tasks mirror and rotate the training images; the last one also shuffles their channels.
Their conditioning is one bit: 1 for an image that was augmented.
"""

from idode_gin.feed.augmentation import Augmentation
from tasks.formats.published import CIFAR10
from tasks.support.registration import add_task
from tasks.support.tfds_images import TfdsImages

TASKS = ("cifar10", "cifar10_aug", "cifar10_aug_with_channel")

add_task("cifar10", TfdsImages(CIFAR10))
add_task("cifar10_aug", TfdsImages(CIFAR10, Augmentation()))
add_task("cifar10_aug_with_channel", TfdsImages(CIFAR10, Augmentation(channels=True)))
