"""The mesh: sizes from what was bound, devices in their places, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from idode_gin.devices import mesh


@pytest.mark.parametrize(
    ("shape", "partitions", "devices", "expected"),
    [
        (None, 1, 8, (8, 1, 1)),
        (None, 2, 8, (4, 1, 2)),
        ({"fsdp": 4}, 1, 8, (2, 4, 1)),
        ({"fsdp": -1}, 1, 8, (1, 8, 1)),
        ({"data": 2, "fsdp": -1, "model": 2}, 1, 8, (2, 2, 2)),
        ({"data": 2, "fsdp": 4}, 1, 8, (2, 4, 1)),
        ({"fsdp": 2}, 2, 8, (2, 2, 2)),
        ((2, 4, 1), 1, 8, (2, 4, 1)),
        ((2, 2, 2), 2, 8, (2, 2, 2)),
        ((-1, 1, 4), 1, 8, (2, 1, 4)),
        ({"fsdp": 64}, 1, None, (1, 64, 1)),
    ],
)
def test_sizes(shape, partitions, devices, expected):
    within, across = mesh.resolve(shape, None, partitions, devices)
    assert (within, across) == (expected, (1, 1, 1))


def test_sizes_of_groups():
    assert mesh.resolve({"fsdp": 4}, {"data": 2}, 1, 16) == ((2, 4, 1), (2, 1, 1))
    assert mesh.resolve({"fsdp": 4}, {"data": 2}, 1, None) == ((1, 4, 1), (2, 1, 1))
    assert mesh.abstract((2, 4, 1), (2, 1, 1)).shape == {"data": 4, "fsdp": 4, "model": 1}


@pytest.mark.parametrize(
    ("shape", "groups", "partitions", "message"),
    [
        ({"fsdp": 16}, None, 1, r"data=1 x fsdp=16 x model=1 = 16 and 8 devices.*product divides"),
        ({"data": 2, "fsdp": 2}, None, 1, r"= 4 and 8 devices\. Leave 'data' out"),
        ({"fsdp": 3}, None, 1, r"data=2 x fsdp=3 x model=1 = 6 and 8 devices.*divides 8"),
        ((2, 4), None, 1, r"3 numbers for data, fsdp, model, got \(2, 4\)"),
        ({"fdsp": 4}, None, 1, r"got 'fdsp'\. Did you mean 'fsdp'"),
        ({"fsdp": 0}, None, 1, r"mesh_shape\['fsdp'\].*1 or more, got .*=0"),
        ({"fsdp": True}, None, 1, "must be an integer"),
        ({"fsdp": -1, "model": -1}, None, 1, None),
        ({"data": -1, "fsdp": -1}, None, 1, "-1 once"),
        ({"model": 4}, None, 2, r"num_partitions=2 and mesh_shape=\{'model': 4\}"),
        ({"fsdp": 4}, {"data": -1}, 1, "dcn_mesh_shape.*above 0"),
        ({"fsdp": 8}, {"data": 2}, 1, r"= 16 and 8 devices"),
        (
            None,
            {"data": 3},
            1,
            r"data=6 x .* = 6 and 8 devices\. Choose .* and `dcn_mesh_shape` whose",
        ),
    ],
)
def test_what_is_refused(shape, groups, partitions, message):
    message = message or "-1 once"
    with pytest.raises(ValueError, match=message):
        mesh.resolve(shape, groups, partitions, 8)


def test_order_of_the_axes():
    devices = tuple(jax.devices())
    made = mesh.of_devices((len(devices), 1, 1), (1, 1, 1), devices)
    assert made.axis_names == ("data", "fsdp", "model")
    assert list(made.devices.flat) == list(devices)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What `mesh_utils` asks of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "fake"


def fakes(slice_of):
    return tuple(FakeDevice(i, process_index=i // 2, slice_index=slice_of(i)) for i in range(8))


@pytest.mark.parametrize(
    ("slice_of", "groups"), [(lambda i: i // 4, 2), (lambda i: 0, 4), (lambda i: i // 2, 4)]
)
def test_groups_lie_along_the_axis_that_joins_them(slice_of, groups):
    """Two slices of four devices, or four processes of two: `fsdp` never leaves a group."""
    places = mesh.places((1, 8 // groups, 1), (groups, 1, 1), fakes(slice_of))
    ids = np.vectorize(lambda device: device.id)(places)[:, :, 0]
    np.testing.assert_array_equal(ids, np.arange(8).reshape(groups, -1))


def test_groups_that_are_not_there():
    with pytest.raises(ValueError, match=r"got 8\. There are 2 slices and 4 processes"):
        mesh.of_devices((1, 1, 1), (8, 1, 1), fakes(lambda i: i // 4))
