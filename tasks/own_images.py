"""Tasks `image_folder` and `image_npz`: your own images, of any one height, width and channels.

Bind DATA_PATH in gin to their path.
"""

from tasks.support.own_images import FolderImages, NpzImages
from tasks.support.registration import add_task

TASKS = ("image_folder", "image_npz")

add_task("image_folder", FolderImages())
add_task("image_npz", NpzImages())
