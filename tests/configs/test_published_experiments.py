"""The experiments that repeat published ones have the published settings."""

import dataclasses

import pytest

from idode_gin import eval as eval_program
from idode_gin import train as train_program
from idode_gin.checkpoints.config import RestoreCheckpointConfig
from idode_gin.configs import building
from idode_gin.losses.second_order import SecondOrder
from idode_gin.networks.unet import UNet
from idode_gin.solvers.probes import Rademacher
from idode_gin.training.optimizers import AdamW

CIFAR10 = {"channels": 128, "attention_everywhere": False, "dropout_rate": 0.1}
AUGMENTED = {"channels": 256, "attention_everywhere": True, "dropout_rate": 0.05}
IMAGENET = {"channels": 256, "attention_everywhere": False, "dropout_rate": 0.1}
# Steps, images per step, network, importance samples of the evaluation, its split.
PUBLISHED = {
    "cifar10": (6_000_000, 128, CIFAR10, 1, "test"),
    "cifar10_aug": (1_950_000, 1024, AUGMENTED, 20, "test"),
    "cifar10_aug_with_channel": (1_950_000, 1024, AUGMENTED, 20, "test"),
    "imagenet32_old": (2_000_000, 512, IMAGENET, 1, "validation"),
    "imagenet32_new": (2_000_000, 128, IMAGENET, 1, "validation"),
    "imagenet64_old": (2_000_000, 512, IMAGENET, 1, "validation"),  # as 32: none was published
    "imagenet64_new": (2_000_000, 128, IMAGENET, 1, "validation"),
}


def build(program, name):
    building.load_and_check(program, [f"gin_configs/experiments/{name}.gin"])
    return building.build(program)


@pytest.mark.parametrize("name", PUBLISHED)
def test_training(name):
    steps, batch_size, network, _, split = PUBLISHED[name]
    arguments = build(train_program.train, name)
    assert arguments["total_steps"] == steps
    assert arguments["eval_period"] == arguments["checkpoint_cfg"].save.period == 10_000
    assert arguments["optimizer"] == AdamW(
        learning_rate=2e-4, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, warmup_steps=100
    )
    assert arguments["trainer_cls"](model_dir="m", train_steps=1).ema_rate == 0.9999
    for config, its_split in (("train", "train"), ("train_eval", split)):
        dataset = arguments[f"{config}_dataset_cfg"]
        assert (dataset.mixture_or_task_name, dataset.split) == (name, its_split)
        assert dataset.batch_size == batch_size
    model = arguments["model"]
    assert model.network == UNet(levels=32, groups=32, fourier_exponents=(6, 7), **network)
    assert (model.time.gamma_min, model.time.gamma_max) == (-13.3, 5.0)
    assert model.encoding.levels == 256
    size = 64 if "64" in name else 32
    assert model.image_shape == (size, size, 3)
    parts = [type(each).__name__ for each in (model.schedule, model.parameterization, model.loss)]
    assert parts == ["VariancePreserving", "Velocity", "FirstOrder"]
    assert type(model.time_sampler).__name__ == "VPVelocityImportance"


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation(name):
    *_, importance, split = PUBLISHED[name]
    arguments = build(eval_program.evaluate, f"{name}_eval")
    dataset = arguments["dataset_cfg"]
    assert (dataset.mixture_or_task_name, dataset.split) == (name, split)
    for likelihood in arguments["evaluator"].likelihoods.values():
        assert likelihood.num_importance == importance
    trained = build(train_program.train, name)["model"].network
    # Dropout is for training only.
    assert dataclasses.replace(trained, dropout_rate=0.0) == dataclasses.replace(
        arguments["model"].network, dropout_rate=0.0
    )


# The first-order run; steps to which the second-order loss trains it further.
FINETUNED = {"cifar10": 6_200_000, "imagenet32_new": 2_250_000, "imagenet32_old": 2_125_000}


@pytest.mark.parametrize("name", FINETUNED)
def test_fine_tuning(name):
    """All goes on, the optimizer too, but with the second-order loss."""
    before = build(train_program.train, name)
    after = build(train_program.train, f"{name}_finetune")
    assert after["model"].loss == SecondOrder(strength=0.1, num_probes=1, probe=Rademacher())
    assert dataclasses.replace(after["model"], loss=before["model"].loss) == before["model"]
    assert after["total_steps"] == FINETUNED[name]
    restore = RestoreCheckpointConfig(path=before["model_dir"])
    assert after["checkpoint_cfg"] == dataclasses.replace(before["checkpoint_cfg"], restore=restore)
    for same in ("optimizer", "train_dataset_cfg", "train_eval_dataset_cfg", "eval_period"):
        assert after[same] == before[same]
    trainers = [each["trainer_cls"](model_dir="m", train_steps=1) for each in (before, after)]
    num_microbatches = 4 if name == "imagenet32_old" else 1
    assert trainers[1] == dataclasses.replace(trainers[0], num_microbatches=num_microbatches)


# Steps, images per step, learning rate, network, gamma(t).
VDM = {
    "cifar10_vdm": (10_000_000, 128, 2e-4, CIFAR10, "LearnedLinear"),
    "cifar10_vdm_aug": (100_000_000, 768, 1e-4, IMAGENET | {"dropout_rate": 0.05}, "Monotone"),
}


@pytest.mark.parametrize("name", VDM)
def test_vdm(name):
    """The settings of the released checkpoints."""
    steps, batch_size, rate, network, time = VDM[name]
    arguments = build(train_program.train, name)
    assert arguments["total_steps"] == steps
    assert arguments["optimizer"] == AdamW(
        learning_rate=rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, warmup_steps=100
    )
    assert arguments["trainer_cls"](model_dir="m", train_steps=1).ema_rate == 0.9999
    dataset = arguments["train_dataset_cfg"]
    assert dataset.mixture_or_task_name == name.replace("_vdm", "")
    assert dataset.batch_size == batch_size
    model = arguments["model"]
    assert model.network == UNet(levels=32, groups=32, fourier_exponents=(6, 7), **network)
    assert (type(model.time).__name__, model.time.learn_ends) == (time, True)
    assert getattr(model.time, "units", 1024) == 1024
    assert (model.time.gamma_min, model.time.gamma_max) == (-13.3, 5.0)
    parts = [type(each).__name__ for each in (model.schedule, model.parameterization, model.loss)]
    assert parts == ["VariancePreserving", "Noise", "FirstOrder"]
    assert type(model.time_sampler).__name__ == "Uniform"
    scored = build(eval_program.evaluate, f"{name}_eval")
    assert scored["model"].time == model.time
    assert scored["dataset_cfg"].split == "test"


def test_own_images_have_their_path():
    for name, path in {"image_folder": "my_images", "image_npz": "my_images.npz"}.items():
        arguments = build(train_program.train, name)
        configs = [arguments["train_dataset_cfg"], arguments["train_eval_dataset_cfg"]]
        configs.append(build(eval_program.evaluate, f"{name}_eval")["dataset_cfg"])
        assert [each.data_path for each in configs] == [path] * 3
        assert [each.split for each in configs] == ["train", "validation", "test"]
