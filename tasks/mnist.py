"""Tasks `mnist` and `fashion_mnist`: 28 x 28 x 1, 8 bits.

60,000 training and 10,000 test images each, from files in the format of TensorFlow Datasets.
"""

from tasks.formats.published import FASHION_MNIST, MNIST
from tasks.support.registration import add_task
from tasks.support.tfds_images import TfdsImages

TASKS = ("mnist", "fashion_mnist")

add_task("mnist", TfdsImages(MNIST))
add_task("fashion_mnist", TfdsImages(FASHION_MNIST))
