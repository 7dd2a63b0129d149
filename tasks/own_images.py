"""Tasks `image_folder` and `image_npz`: your own images, of any one height, width and channels.

Bind DATA_PATH in gin to their path.
"""

from tasks.support.own_images import FolderImages, NpzImages
from tasks.support.registration import add_task

TASKS = (FolderImages.name, NpzImages.name)

add_task(FolderImages.name, FolderImages())
add_task(NpzImages.name, NpzImages())
