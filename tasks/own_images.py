"""Tasks `image_folder` and `image_npz`: your own images, of any one height, width and channels.

Bind DATA_PATH in gin to their path.
"""

from tasks.support.own_images import FolderReader, NpzReader, OwnImages
from tasks.support.registration import add_task

TASKS = (FolderReader.name, NpzReader.name)

add_task(FolderReader.name, OwnImages(FolderReader()))
add_task(NpzReader.name, OwnImages(NpzReader()))
