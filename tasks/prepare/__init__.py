"""`python -m tasks.prepare`: from the files that a user downloaded to a TFDS dataset on disk.

    sources -> reader -> records -> writer -> <tfds_data_dir>/<dataset>/<version>

One reader per format (`cifar10`, `imagenet_new`, `imagenet_old`, `image_folder`, `tfrecords`), on
NumPy and Pillow alone, reads archives as a stream, extracts nothing to disk and runs nothing that
they hold; `writer` alone knows TFDS. Nothing here registers a task.
"""
