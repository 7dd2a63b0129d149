"""Folders without splits: put into splits by the paths of their files."""

import json
import os
import pathlib
import shlex

import archives
import pytest
from PIL import Image
from test_prepare import prepare

from idode_gin.feed import data, loading
from tasks.prepare import datasets, image_folder, splitting
from tasks.prepare.refusals import SourceError

FILES = [pathlib.Path(f"/own/{kind}/{number}.png") for kind in "ab" for number in range(1000)]


def test_shares_are_kept_and_files_stay_where_they_are():
    found = splitting.split(pathlib.Path("/own"), FILES, (0.8, 0.1, 0.1))
    assert sorted(each for files in found.values() for each in files) == sorted(FILES)
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(len(found[name]) / len(FILES) - share) < 0.03
        assert found[name] == sorted(found[name], key=FILES.index)
    moved = [pathlib.Path("/elsewhere") / each.relative_to("/own") for each in FILES[::3]]
    fewer = splitting.split(pathlib.Path("/elsewhere"), moved, (0.8, 0.1, 0.1))
    places = {each.relative_to("/own"): name for name, files in found.items() for each in files}
    for name, files in fewer.items():
        assert {places[each.relative_to("/elsewhere")] for each in files} == {name}
    assert set(splitting.split(pathlib.Path("/own"), FILES, (0.5, 0.0, 0.5))) == {"train", "test"}
    # Files of one name in two folders fall apart as any two: p = 1 - 0.8^2 - 0.1^2 - 0.1^2 = 0.34.
    apart = [
        places[FILES[n].relative_to("/own")] != places[FILES[n + 1000].relative_to("/own")]
        for n in range(1000)
    ]
    assert abs(sum(apart) / 1000 - 0.34) < 4 * (0.34 * 0.66 / 1000) ** 0.5


@pytest.mark.parametrize(
    "text", ["0.8,0.1", "0.8,0.1,0.2", "0,0.5,0.5", "1.2,-0.1,-0.1", "a,b,c", "", "nan,0,1"]
)
def test_what_are_no_shares_is_refused(text):
    with pytest.raises(SourceError, match=r"add up to one, such as 0.8,0.1,0.1, got"):
        splitting.shares(text)


def test_a_split_without_images_is_refused():
    with pytest.raises(SourceError, match="leaves no image for validation: /own holds 1"):
        splitting.split(pathlib.Path("/own"), FILES[:1], (0.5, 0.25, 0.25))


@pytest.fixture
def folders(tmp_path):
    """Images in folders of two classes, `a` and `b`, without splits."""
    archives.image_folder(tmp_path, {"mine": 40})
    return tmp_path / "mine"


def test_a_folder_of_classes_is_split_and_keeps_its_classes(folders, tmp_path, capsys):
    given = "--split", "0.6,0.2,0.2"
    folder = prepare("image_folder", [folders], tmp_path / "data", *given)
    out = capsys.readouterr().out
    for flag in ("NUM_CLASSES=2", "MODEL_DIR=\"'runs/my_images'\"", "sizes/small.gin"):
        assert flag in out
    assert "EVAL_SPLIT" not in out
    said = "split by the hash of each file's path: 0.6 train, 0.2 validation, 0.2 test"
    recorded = json.loads((folder / "fingerprint.json").read_text())
    assert recorded.pop("splitting") == said
    config = data.DatasetConfig(
        mixture_or_task_name="image_folder", split="test", batch_size=1, data_path=str(folder)
    )
    assert loading.class_names(config) == ("a", "b")
    split = loading.load_split(config)
    assert split.facts()["variant"] == f"your own images, {said}"
    assert split.num_images == recorded["test"]["num_images"]
    assert sum(each["num_images"] for each in recorded.values()) == 40


def test_names_in_another_encoding(folders, tmp_path):
    """A Latin-1 name, as an old zip file leaves it: fine for a file, not for a class."""
    (folders / "a" / "0000.png").rename(folders / "a" / os.fsdecode(b"caf\xe9.png"))
    prepare("image_folder", [folders], tmp_path / "data", "--split", "0.6,0.2,0.2")
    (folders / "a").rename(folders / os.fsdecode(b"caf\xe9"))
    with pytest.raises(SourceError, match=r"UTF-8, got 'caf\\udce9'. Rename it"):
        image_folder.read(
            datasets.image_folder("mine"), [folders], partial=False, shares=(0.6, 0.2, 0.2)
        )


def test_what_is_printed_can_be_typed(tmp_path, capsys):
    """No training without a training split; paths in quotes."""
    archives.image_folder(tmp_path, {"test": 4})
    data_dir = tmp_path / "it's here"
    prepare("image_folder", [tmp_path], data_dir)
    assert "idode_gin.train" not in capsys.readouterr().out
    (tmp_path / "test").rename(tmp_path / "train")
    prepare("image_folder", [tmp_path], data_dir, "--overwrite")
    command = capsys.readouterr().out.partition("on a GPU):\n")[2].splitlines()[0]
    bound = {each for each in shlex.split(command) if each.startswith("--gin.DATA_PATH=")}
    folder = str(data_dir / datasets.image_folder("my_images").folder)
    assert bound == {f"--gin.DATA_PATH={folder!r}"}


def test_images_for_validation_alone_are_no_dataset(tmp_path):
    archives.image_folder(tmp_path, {"validation": 2})
    with pytest.raises(SourceError, match="holds images for validation alone"):
        image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False)


def test_an_image_that_changes_between_looking_and_writing_is_named(tmp_path):
    archives.image_folder(tmp_path, {"train": 2}, shape=(8, 8, 3))
    source = image_folder.read(datasets.image_folder("mine"), [tmp_path], partial=False)
    changed = sorted((tmp_path / "train").rglob("*.png"))[1]
    with Image.open(changed) as image:
        image.resize((4, 4)).save(changed)
    with pytest.raises(SourceError, match=rf"{changed.name} is 4x4x3 now and was 8x8x3"):
        list(source.splits["train"]())


def test_missing_splits_are_said_once_with_the_way_out(folders):
    dataset = datasets.image_folder("mine")
    with pytest.raises(SourceError) as caught:
        image_folder.read(dataset, [folders], partial=False)
    assert str(caught.value).count(".png") == 1
    assert "got 40 images in none, such as" in str(caught.value)
    assert "--split 0.8,0.1,0.1" in str(caught.value)
    (folders / "train").mkdir()
    with pytest.raises(SourceError, match=r"--split is for .* has train. Leave --split out"):
        image_folder.read(dataset, [folders], partial=False, shares=(0.8, 0.1, 0.1))
    (folders / "a" / "0000.png").rename(folders / "train" / "one.png")
    with pytest.raises(SourceError, match=r"(?s)1 file is refused.* nor do 38 other images"):
        image_folder.read(dataset, [folders], partial=False)
