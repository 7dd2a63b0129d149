"""The feed: every image, in the promised order, or an error that says what to do."""

import dataclasses
import hashlib
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest

from idode_gin.runtime import data


def make_split(num_images=7, shape=(2, 3, 1), dtype=np.uint8) -> data.ImageSplit:
    """Images that carry their own index in every pixel."""
    images = np.broadcast_to(
        np.arange(num_images).reshape(-1, 1, 1, 1), (num_images, *shape)
    ).astype(dtype)
    rows = np.arange(num_images, dtype=np.float32)[:, None]
    return data.ImageSplit(images=images, conditioning=rows, name="made", split="train")


def make_config(**changes) -> data.DatasetConfig:
    defaults = {"mixture_or_task_name": "made", "split": "train", "batch_size": 3}
    return data.DatasetConfig(**(defaults | changes))


# Training order.


@pytest.mark.parametrize("batch_size", [1, 3, 7, 17])  # 17: more than two epochs in a batch
def test_every_epoch_is_a_permutation_of_the_split(batch_size):
    split, config = make_split(), make_config(batch_size=batch_size)
    batches = [data.train_batch(split, config, step) for step in range(7)]
    stream = np.concatenate([batch["index"] for batch in batches])
    epochs = stream.reshape(-1, split.num_images)  # 7 steps make batch_size whole epochs
    assert len(epochs) == batch_size
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(split.num_images))
    assert batch_size < 3 or len({tuple(epoch) for epoch in epochs}) > 1


def test_batch_boundaries_do_not_change_the_order():
    split = make_split()
    by_size = {
        size: np.concatenate(
            [
                data.train_batch(split, make_config(batch_size=size), step)["index"]
                for step in range(60 // size)
            ]
        )
        for size in (1, 4, 5, 60)
    }
    for order in by_size.values():
        np.testing.assert_array_equal(order, by_size[1])


def test_a_step_does_not_depend_on_the_steps_before_it():
    split, config = make_split(50), make_config(batch_size=8, seed=4)
    forward = [data.train_batch(split, config, step)["index"] for step in range(20)]
    data.epoch_order.cache_clear()
    backward = [data.train_batch(split, config, step)["index"] for step in reversed(range(20))]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_the_order_is_the_recorded_one():
    # A change here makes resumed runs see other images: it has to be meant.
    assert data.epoch_order(0, 0, 8).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert data.epoch_order(3, 5, 8).tolist() == [6, 4, 3, 2, 0, 7, 5, 1]


def test_seeds_and_epochs_give_different_orders():
    orders = {tuple(data.epoch_order(seed, epoch, 30)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_orders_are_uniform():
    # Each of the 6 orders of 3 images: 6,000 draws, standard deviation 29.
    seen = Counter(tuple(data.epoch_order(0, epoch, 3)) for epoch in range(6000))
    assert len(seen) == 6
    assert all(abs(count - 1000) < 150 for count in seen.values())


def test_without_shuffling_the_split_repeats_in_its_own_order():
    split, config = make_split(), make_config(batch_size=5, shuffle=False)
    stream = [data.train_batch(split, config, step)["index"] for step in range(3)]
    np.testing.assert_array_equal(np.concatenate(stream), np.arange(15) % 7)


def test_a_training_batch_holds_the_images_that_its_index_names():
    split, config = make_split(), make_config(batch_size=5)
    batch = data.train_batch(split, config, 1)
    np.testing.assert_array_equal(batch["image"], split.images[batch["index"]])
    np.testing.assert_array_equal(batch["conditioning"], split.conditioning[batch["index"]])
    np.testing.assert_array_equal(batch["position"], np.arange(5))
    np.testing.assert_array_equal(batch["mask"], np.ones(5))
    types = {name: array.dtype.name for name, array in batch.items()}
    assert types == {
        "image": "uint8",
        "conditioning": "float32",
        "position": "int32",
        "index": "int32",
        "mask": "float32",
    }


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step=-1"):
        data.train_batch(make_split(), make_config(), -1)


# Evaluation order.


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_evaluation_sees_every_image_exactly_once_in_order(batch_size):
    split = make_split()
    batches = list(data.eval_batches(split, batch_size))
    assert {len(batch["image"]) for batch in batches} == {batch_size}
    real = np.concatenate([batch["mask"] for batch in batches]) == 1
    index = np.concatenate([batch["index"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(index[real], np.arange(7))
    np.testing.assert_array_equal(images[real], split.images)
    np.testing.assert_array_equal(index[~real], 0)
    np.testing.assert_array_equal(images[~real], 0 * images[~real])  # image 0 holds zeros
    assert real.sum() == 7
    assert len(real) < 7 + batch_size


def test_evaluation_refuses_an_empty_batch_at_once():
    with pytest.raises(ValueError, match="batch_size=0"):
        data.eval_batches(make_split(), 0)


# Configuration and images that are refused.


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"batch_size": -4}, {"seed": -1}])
def test_bad_sizes_and_seeds_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
        make_config(**changes)


@pytest.mark.parametrize("value", [1e3, 0.5, "ten", True, None])
def test_what_is_not_an_integer_is_refused(value):
    with pytest.raises(ValueError, match="`size` must be an integer, 1 or more"):
        data._check_integer("size", value, at_least=1)
    data._check_integer("size", np.int64(3), at_least=1)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 3, 3, 1), np.float32),
        np.zeros((4, 3, 3, 1), bool),
        np.zeros((4, 3, 3), np.uint8),
        np.zeros((4, 9), np.uint8),
    ],
)
def test_images_of_another_type_or_rank_are_refused(images):
    with pytest.raises(ValueError, match=r"integer images \[N, H, W, C\], got"):
        dataclasses.replace(make_split(4), images=images)


@pytest.mark.parametrize("shape", [(0, 3, 3, 1), (4, 3, 3, 0)])
def test_images_without_pixels_are_refused(shape):
    rows = np.zeros((shape[0], 1), np.float32)
    with pytest.raises(ValueError, match="no pixels"):
        dataclasses.replace(make_split(), images=np.zeros(shape, np.uint8), conditioning=rows)


@pytest.mark.parametrize(
    "rows", [np.zeros((6, 1)), np.zeros(7), np.full((7, 1), np.nan)], ids=["few", "flat", "nan"]
)
def test_bad_conditioning_is_refused(rows):
    with pytest.raises(ValueError, match="one finite conditioning row"):
        dataclasses.replace(make_split(7), conditioning=rows.astype(np.float32))


@pytest.mark.parametrize(("bad", "dtype"), [(17, np.uint8), (-1, np.int32), (300, np.int32)])
def test_the_first_bad_pixel_is_named(bad, dtype):
    images = np.zeros((5, 2, 3, 1), dtype)
    images[3, 1, 2, 0] = images[4, 0, 0, 0] = bad
    images[0] = 16  # the largest that 17 levels allow
    split = dataclasses.replace(make_split(5), images=images)
    with pytest.raises(ValueError, match=rf"0\.\.16.*image 3 has {bad} at .*\(1, 2, 0\)"):
        data.check_images(split, 17)


def test_all_levels_are_allowed_and_not_one_more():
    split = make_split(8)
    data.check_images(split, 8)
    with pytest.raises(ValueError, match="image 7 has 7"):
        data.check_images(split, 7)
    full = dataclasses.replace(make_split(1), images=np.full((1, 2, 2, 1), 255, np.uint8))
    data.check_images(full, 256)


def test_the_digest_is_of_the_pixels():
    split = make_split()
    assert split.sha256 == hashlib.sha256(split.images.tobytes()).hexdigest()
    other = split.images.copy()
    other[6, 1, 1, 0] += 1
    assert dataclasses.replace(split, images=other).sha256 != split.sha256
    # A view that is not contiguous has the digest of its pixels all the same.
    view = dataclasses.replace(split, images=other[:, ::-1])
    assert view.sha256 == hashlib.sha256(view.images.tobytes()).hexdigest()


# The background thread.


def test_prefetch_changes_nothing():
    assert list(data.prefetch(iter(range(50)))) == list(range(50))
    assert list(data.prefetch([])) == []


def test_prefetch_looks_ahead_by_no_more_than_its_size():
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    ahead = data.prefetch(source(), size=2)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 4  # one taken, two queued, one in the thread's hand
    ahead.close()


def test_prefetch_raises_what_its_source_raised_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise OSError("disk on fire")

    ahead = data.prefetch(source(), size=5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="disk on fire"):
        next(ahead)


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_prefetch_ends_its_thread(taken):
    def threads():
        return {each for each in threading.enumerate() if each.name == "prefetch"}

    before = threads()
    ahead = data.prefetch(iter(range(10**9)), size=1)
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    assert len(threads() - before) == 1
    ahead.close()
    assert not threads() - before


def test_prefetch_refuses_to_look_zero_ahead():
    with pytest.raises(ValueError, match="size=0"):
        data.prefetch([], size=0)


# Reading seqio tasks.


@pytest.fixture
def register():
    """Registers a seqio task or mixture for one test."""
    import seqio
    import tensorflow as tf

    tasks, mixtures = [], []

    def add_task(name, examples, *, spec=None, preprocessors=(), splits=("train",), **options):
        def dataset_fn(split, shuffle_files=False):
            if spec is None:
                return tf.data.Dataset.from_tensor_slices(examples)
            return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=spec)

        image = (spec or dataset_fn("train").element_spec).get("image")
        features = {}
        if image is not None:
            rank = image.shape.rank
            features = {"image": seqio.ContinuousFeature(dtype=image.dtype, rank=rank)}
        source = seqio.FunctionDataSource(dataset_fn, splits=splits)
        tasks.append(name)
        seqio.TaskRegistry.add(
            name,
            source=options.pop("source", source),
            preprocessors=list(preprocessors),
            output_features=features,
        )

    def add_mixture(name, rates):
        mixtures.append(name)
        seqio.MixtureRegistry.add(name, list(rates.items()))

    add_task.mixture = add_mixture
    yield add_task
    for name in tasks:
        seqio.TaskRegistry.remove(name)
    for name in mixtures:
        seqio.MixtureRegistry.remove(name)


def random_images(num_images, shape=(4, 5, 1), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (num_images, *shape)).astype(dtype)


def load(name, **changes):
    return data.load_split(make_config(mixture_or_task_name=name, **changes))


def test_a_split_is_loaded_whole_and_in_order(register):
    images = random_images(700)  # more than two chunks
    register("made", {"image": images, "label": np.arange(700)})
    split = load("made", batch_size=64)
    np.testing.assert_array_equal(split.images, images)
    assert split.images.dtype == np.uint8
    np.testing.assert_array_equal(split.conditioning, np.zeros((700, 1), np.float32))
    assert (split.num_images, split.image_shape) == (700, (4, 5, 1))
    assert (split.name, split.split) == ("made", "train")
    assert not split.images.flags.writeable


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_wider_integers_become_int32(register, dtype):
    images = random_images(5, dtype=dtype) * 100
    register("made", {"image": images})
    split = load("made")
    assert split.images.dtype == np.int32
    np.testing.assert_array_equal(split.images, images)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_conditioning_becomes_one_float_row_per_image(register, shape):
    rows = np.arange(np.prod(shape)).reshape(shape)
    register("made", {"image": random_images(6), "conditioning": rows})
    split = load("made")
    assert split.conditioning.dtype == np.float32
    np.testing.assert_array_equal(split.conditioning, rows.reshape(6, -1))


def test_a_task_without_static_shape_is_read_too(register):
    import tensorflow as tf

    spec = {"image": tf.TensorSpec([None, None, 1], tf.uint8)}
    images = random_images(9)
    register("made", [{"image": each} for each in images], spec=spec)
    np.testing.assert_array_equal(load("made").images, images)


def test_images_of_two_sizes_are_refused(register):
    import tensorflow as tf

    spec = {"image": tf.TensorSpec([None, None, 1], tf.uint8)}
    images = [*random_images(3), *random_images(1, (4, 6, 1))]
    register("made", [{"image": each} for each in images], spec=spec)
    with pytest.raises(ValueError, match=r"number 3 is \[4, 6, 1\] and number 0 is \[4, 5, 1\]"):
        load("made")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"image": np.zeros((3, 4, 4, 1), np.float32)}, "integer images .* got float32"),
        ({"image": np.zeros((3, 4, 4), np.uint8)}, r"integer images .* got uint8 \[3, 4, 4\]"),
        ({"image": np.zeros((0, 4, 4, 1), np.uint8)}, "'train' of task 'made' is empty"),
        ({"picture": np.zeros((3, 4, 4, 1), np.uint8)}, '"image" feature, got picture'),
    ],
    ids=["float", "rank", "empty", "no image"],
)
def test_tasks_that_are_not_images_are_refused(register, examples, message):
    register("made", examples)
    with pytest.raises(ValueError, match=message):
        load("made")


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="named 'digit' .*Did you mean 'digits'"):
        load("digit")


def test_an_unknown_split_lists_the_splits():
    with pytest.raises(ValueError, match="no split 'dev'.*'test', 'train', 'validation'"):
        load("digits", split="dev")


def test_an_unknown_module_is_named():
    with pytest.raises(ValueError, match="module='no_such_module'"):
        load("digits", module="no_such_module")


def test_a_module_that_misses_something_itself_says_so(tmp_path, monkeypatch):
    (tmp_path / "my_broken_tasks.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load("digits", module="my_broken_tasks")


def test_a_users_own_module_is_imported(register, tmp_path, monkeypatch):
    import sys

    import seqio

    (tmp_path / "my_own_tasks.py").write_text(
        "import numpy as np\n"
        "from tasks import register_images\n"
        "register_images('my_own', {'train': 2}, lambda split: np.ones((2, 3, 3, 1), np.uint8))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_tasks", raising=False)
    try:
        np.testing.assert_array_equal(load("my_own", module="my_own_tasks").images, 1)
    finally:
        seqio.TaskRegistry.remove("my_own")


def test_a_mixture_with_rates_as_sizes_is_its_tasks_in_turn(register):
    first, second = random_images(4), random_images(12, seed=1)
    register("made_a", {"image": first})
    register("made_b", {"image": second})
    register.mixture("made_both", {"made_b": 3.0, "made_a": 1.0})
    split = load("made_both")
    np.testing.assert_array_equal(split.images, np.concatenate([first, second]))
    assert split.name == "made_both"


def test_a_mixture_of_one_task_may_have_any_rate(register):
    images = random_images(4)
    register("made", {"image": images})
    register.mixture("made_alone", {"made": 7.0})
    np.testing.assert_array_equal(load("made_alone").images, images)


def test_a_mixture_with_other_rates_is_refused(register):
    register("made_a", {"image": random_images(4)})
    register("made_b", {"image": random_images(12)})
    register.mixture("made_both", {"made_b": 1.0, "made_a": 1.0})
    with pytest.raises(ValueError, match="made_a: rate 1, 4 images, made_b: rate 1, 12 images"):
        load("made_both")


def test_tensorflow_datasets_on_disk_are_read_whole(register, tmp_path):
    import seqio
    import tensorflow_datasets as tfds

    images = random_images(40, (4, 4, 3))

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            shape = tfds.features.Image(shape=(4, 4, 3), encoding_format="png")
            features = tfds.features.FeaturesDict({"image": shape})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((number, {"image": image}) for number, image in enumerate(images))

    Made(data_dir=tmp_path).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    register(
        "made_tfds",
        {"image": images},  # only for the feature's type
        source=seqio.TfdsDataSource("made:1.0.0", read_only=True, splits=("train",)),
    )
    data.set_data_dirs(tfds_data_dir=str(tmp_path))
    try:
        split = load("made_tfds")
        again = load("made_tfds")
    finally:
        seqio.set_tfds_data_dir_override(None)
    assert Counter(each.tobytes() for each in split.images) == Counter(
        each.tobytes() for each in images
    )
    assert split.sha256 == again.sha256


def test_a_seqio_cache_is_read_where_asked_for(register, tmp_path):
    import seqio
    import tensorflow as tf

    register(
        "made_cached",
        {"image": random_images(3, dtype=np.int32)},
        preprocessors=[seqio.CacheDatasetPlaceholder()],
    )
    before = list(seqio.get_global_cache_dirs())
    with pytest.raises(ValueError, match="'made_cached' is in none of the seqio cache folders"):
        load("made_cached", use_cached=True)

    cached = random_images(6, dtype=np.int32, seed=1)
    folder = tmp_path / "made_cached"
    folder.mkdir()
    (folder / "COMPLETED").touch()
    (folder / "stats.train.json").write_text(json.dumps({"examples": 6}))
    description = {"image": {"shape": [4, 5, 1], "dtype": "int32"}}
    (folder / "info.train.json").write_text(
        json.dumps({"features": description, "num_shards": 1, "seqio_version": "0.0.20"})
    )
    with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
        for image in cached:
            values = tf.train.Feature(int64_list=tf.train.Int64List(value=image.reshape(-1)))
            example = tf.train.Example(features=tf.train.Features(feature={"image": values}))
            writer.write(example.SerializeToString())

    data.set_data_dirs(seqio_cache_dirs=[str(tmp_path)])
    try:
        np.testing.assert_array_equal(load("made_cached", use_cached=True).images, cached)
    finally:
        seqio.set_global_cache_dirs(before)


def test_gpus_are_hidden_from_tensorflow(monkeypatch):
    import tensorflow as tf

    hidden = []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind))
    )
    load("digits", split="test")
    assert hidden == [([], "GPU")]
