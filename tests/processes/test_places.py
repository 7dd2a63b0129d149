"""Detection of the cluster, without any cluster."""

import types

import pytest

from idode_gin.processes import places
from idode_gin.processes.places import find_place

SLURM = {
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "node[007-008],gpu3",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_RANK": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
}
TPU = {
    "TPU_WORKER_HOSTNAMES": "localhost,t1k-1,t1k-2,t1k-3",
    "TPU_WORKER_ID": "2",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
}
VARIABLES = (
    *("JAX_COORDINATOR_ADDRESS", "JAX_LOCAL_DEVICE_IDS", "JAX_COORDINATOR_PORT"),
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "KUBERNETES_SERVICE_HOST"),
    *("OMPI_COMM_WORLD_LOCAL_SIZE", "TPU_PROCESS_ADDRESSES"),
    *SLURM,
    *OPEN_MPI,
    *TPU,
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """Set variables as a launcher does, without those of this machine's launcher."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def setting(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return setting


def test_slurm_with_a_task_per_gpu(environment) -> None:
    environment(**SLURM)
    place = find_place()
    assert place.coordinator_address == "node007:61443"  # 65535 - 4095 + 4099 % 4096
    assert (place.count, place.index, place.local_device_ids) == (8, 5, (1,))


def test_slurm_with_a_task_per_gpu_that_sees_only_its_own(environment) -> None:
    """With `--gpus-per-task=1`, the GPU that a task sees always has number 0."""
    environment(**SLURM, CUDA_VISIBLE_DEVICES="3")
    assert find_place().local_device_ids == ()


def test_slurm_with_a_task_per_node(environment) -> None:
    """jax alone would use one GPU of each node."""
    nodes = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    environment(**SLURM | nodes | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"})
    place = find_place()
    assert (place.count, place.index, place.local_device_ids) == (2, 1, ())


@pytest.mark.parametrize(
    ("tasks", "node", "expected"),
    [
        ("4(x2),1", "2", ()),
        ("4(x2),1", "1", (1,)),
        ("2,1(x3),4", "3", ()),
        ("2,1(x3),4", "4", (1,)),
    ],
)
def test_slurm_with_nodes_of_many_sizes(environment, tasks, node, expected) -> None:
    environment(**SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node})
    assert find_place().local_device_ids == expected


def test_open_mpi(environment) -> None:
    environment(**OPEN_MPI)
    place = find_place()
    assert place.coordinator_address.startswith("10.96.0.1:")
    assert (place.count, place.index, place.local_device_ids) == (6, 4, (2,))
    environment(OMPI_COMM_WORLD_LOCAL_SIZE="1")
    assert find_place().local_device_ids == ()


def test_open_mpi_inside_a_slurm_job(environment) -> None:
    """Of SLURM's one task on each node, Open MPI's daemon."""
    daemons = {"SLURM_STEP_TASKS_PER_NODE": "1(x3)", "SLURM_NODEID": "1"}
    environment(**OPEN_MPI, **daemons, OMPI_COMM_WORLD_LOCAL_SIZE="3")
    assert find_place().local_device_ids == (2,)


def test_tpu_pod(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.clusters import cloud_tpu_cluster, cluster

    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    environment(**TPU)
    place = find_place()
    assert place.coordinator_address == "localhost:8482"
    assert (place.count, place.index, place.local_device_ids) == (8, 6, ())


def test_kubernetes_job_set(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.clusters.k8s_cluster import K8sCluster

    labels = {"jobset.sigs.k8s.io/jobset-name": "run"}
    metadata = types.SimpleNamespace(labels=labels, name="run-workers-0")
    job = types.SimpleNamespace(metadata=metadata, spec=types.SimpleNamespace(parallelism=4))
    answers = {"_job": job, "_pod": None, "_controller": types.SimpleNamespace(kind="Job")}
    for name, answer in answers.items():
        monkeypatch.setattr(K8sCluster, name, lambda answer=answer: answer)
    monkeypatch.setattr(K8sCluster, "is_env_present", lambda: True)
    monkeypatch.setattr("socket.gethostbyname", lambda name: "10.0.0.1")
    environment(JOB_COMPLETION_INDEX="3")
    place = find_place(timeout=1)
    assert place.coordinator_address == "run-workers-0-0.run:55527"
    assert (place.count, place.index, place.local_device_ids) == (4, 3, ())


def test_flags_win_over_what_is_found(environment) -> None:
    environment(**SLURM)
    place = find_place("host:1", 2, 1, ["2", "3"])
    assert place == places.Place(
        coordinator_address="host:1", count=2, index=1, local_device_ids=(2, 3)
    )
    assert find_place(local_device_ids=["all"]).local_device_ids == ()
    assert find_place(process_index=7).index == 7
    environment(JAX_LOCAL_DEVICE_IDS="0,1", JAX_COORDINATOR_ADDRESS="other:2")
    assert find_place().local_device_ids == (0, 1)
    assert find_place().coordinator_address == "other:2"
    assert find_place(local_device_ids=["all"]).local_device_ids == ()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((None, None, None), "needs --coordinator_address, --process_count, --process_index here"),
        (("host:1", None, 0), "needs --process_count here"),
        (("host:1", 2, 2), "--process_index must be 0 to 1, as --process_count is 2; got 2"),
        (("host:1", 2, -1), "got -1"),
        (("host:1", 2, 0, ["a"]), "--local_device_ids must be numbers, such as 0,1, or 'all'"),
        (("host:1", 2, 0, []), "--local_device_ids must be numbers"),
    ],
)
def test_places_that_are_none(environment, given, found) -> None:
    with pytest.raises(ValueError, match=found):
        find_place(*given)


def test_kubernetes_without_permission(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.clusters.k8s_cluster import K8sCluster

    def refuse() -> None:
        raise RuntimeError("Kubernetes API Error: 403 - Forbidden")

    monkeypatch.setattr(K8sCluster, "is_env_present", lambda: True)
    monkeypatch.setattr(K8sCluster, "_controller", refuse)
    with pytest.raises(ValueError, match=r"could not be detected\. Kubernetes API Error: 403"):
        find_place()


@pytest.mark.parametrize("missing", [*OPEN_MPI][1:])
def test_open_mpi_half_set(environment, missing: str) -> None:
    environment(**{name: value for name, value in OPEN_MPI.items() if name != missing})
    with pytest.raises(ValueError, match=f"could not be detected. {missing} is not set.*Unset"):
        find_place()
    flags = {"coordinator_address": "h:1", "process_count": 2, "process_index": 0}
    assert find_place(**flags, local_device_ids=["all"]).count == 2


def test_open_mpi_with_a_value_that_is_none(environment) -> None:
    environment(**OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": ""})
    with pytest.raises(ValueError, match="could not be detected. invalid literal"):
        find_place()


def test_open_mpi_without_its_address(environment) -> None:
    environment(**{name: OPEN_MPI[name] for name in [*OPEN_MPI][1:]})
    with pytest.raises(ValueError, match="OMPI_MCA_orte_hnp_uri.*--process_index=[$]OMPI_COMM"):
        find_place()
