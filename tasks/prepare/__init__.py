"""`python -m tasks.prepare`: build a TFDS dataset on disk from files that a user downloaded.

    sources -> reader -> records -> writer -> <tfds_data_dir>/<dataset>/<version>

There is one reader per format: `cifar10`, `idx`, `imagenet_new`, `imagenet_old`,
`image_folder` and `tfrecords`. They read archives as streams, extract nothing to disk and execute
nothing that an archive holds. Nothing here registers a task.
"""
