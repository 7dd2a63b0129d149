"""What a training step moves on a GPU, read from XLA's program for a card that is not there.

    python -m benchmarks.gpu_hlo [--card=h200] [--step=first|second] [--channels=128] [--levels=32]
        [--batch_size=128] [--dtype=bfloat16] [--remat=convolutions] [--loops] [--dropout=0.1]
        [--fused] [--attention_everywhere] [--float32_buffers] [--save=step.hlo]

XLA compiles for a described card; nothing is run. Of the scheduled program, loops taken as often as
they run, a kernel moves its operands and its results once, which is what is summed by kind; a slice
of an operand counts as the slice. Convolutions, and the operations of products and attention, are
timed at `--peak_share` of the card's peak; all other kernels, and products and attention once more,
by their bytes at `--bandwidth_share`. A kernel costs at least `--kernel_us`. The algorithms of
convolutions are not searched (that needs the card), so that their scratch memory is unknown.

Needed beside the test packages, in a folder DIR of their own; no driver:

    pip download --no-deps -d DIR/wheels jax-cuda12-pjrt==V jax-cuda12-plugin==V   V: of jax
    pip download --no-deps -d DIR/wheels nvidia-cublas-cu12 nvidia-cuda-cupti-cu12 \\
        nvidia-cuda-nvcc-cu12 nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cudnn-cu12 \\
        nvidia-cufft-cu12 nvidia-cusolver-cu12 nvidia-cusparse-cu12 nvidia-nccl-cu12 \\
        nvidia-nvjitlink-cu12 nvidia-nvshmem-cu12
    for wheel in DIR/wheels/*.whl; do unzip -qo $wheel -d DIR/site; done
    PYTHONPATH=DIR/site python -m benchmarks.gpu_hlo
"""

import argparse
import collections
import dataclasses
import datetime
import importlib.util
import os
import pathlib
import sys
import time
from typing import Any
from unittest import mock

os.environ.update(JAX_PLATFORMS="cpu", JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1")
if _FOUND := importlib.util.find_spec("nvidia"):
    _FOLDER = pathlib.Path(next(iter(_FOUND.submodule_search_locations or ["."])))
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 "
        f"--xla_gpu_cuda_data_dir={_FOLDER / 'cuda_nvcc'}"
    )

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks.gpu_kernels import Kernel, has_float32, kernels, origin, parse
from benchmarks.training import as_batch, model_of
from idode_gin.devices import flops
from idode_gin.losses.first_order import FirstOrder
from idode_gin.losses.second_order import SecondOrder
from idode_gin.networks.unet import UNet
from idode_gin.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Card:
    """What its vendor says of a card: bytes, bytes a second, operations a second."""

    name: str
    memory: int
    bandwidth: float
    bfloat16: float
    tf32: float

    def target(self) -> str:
        """XLA's description; both cards have 132 cores of compute capability 9.0."""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024  threads_per_warp: 32
              shared_memory_per_block: 49152  shared_memory_per_core: 233472
              shared_memory_per_block_optin: 232448
              threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128
              block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
              thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
              registers_per_core_limit: 65536  registers_per_block_limit: 65536
              memory_bandwidth: {self.bandwidth:.0f}  device_memory_size: {self.memory}
              l2_cache_size: 52428800  clock_rate_ghz: 1.98
              cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
              device_vendor: "NVIDIA Corporation"  name: "{self.name}"
              driver_version: "12.8.0"  runtime_version: "12.8.0"
              compile_time_toolkit_version: "12.8.0"  dnn_version: "9.10.0"
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.name}"
        """


CARDS = {
    "h100": Card("NVIDIA H100 80GB HBM3", 84942979072, 3.35e12, 989e12, 495e12),
    "h200": Card("NVIDIA H200 141GB HBM3e", 151397597184, 4.8e12, 989e12, 495e12),
}

HAS_CAPABILITY = "jax._src.cudnn.fused_attention_stablehlo.check_compute_capability"
"""jax asks a local GPU, where there is none."""

SIZE = 32
"""Height and width of an image."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step of the trainer.

    Attributes:
        program: XLA's.
        useful: operations without those that remat works out again.
        done: operations.
        traced: seconds.
        compiled: seconds.
    """

    program: Any
    useful: float
    done: float
    traced: float
    compiled: float


def step_of(args: argparse.Namespace) -> Step:
    """Compile the step for the card."""
    topology = topologies.get_topology_desc(
        "", "cuda", target_config=CARDS[args.card].target(), topology="1x1x1"
    )
    with (
        mock.patch.object(jax, "devices", return_value=topology.devices),
        mock.patch(HAS_CAPABILITY, return_value=True),
    ):
        useful = flops.count(*_program(args, remat=None))
        step, *arguments = _program(args, remat=args.remat)
        done = flops.count(step, *arguments)
        began = time.perf_counter()
        lowered = step.lower(*arguments)
        traced = time.perf_counter()
        program = lowered.compile()
    ended = time.perf_counter()
    return Step(program, useful, done, traced - began, ended - traced)


def _program(args: argparse.Namespace, remat: str | None) -> tuple[Any, Any, Any]:
    """Return the step, and the shapes of its state and of its batch."""
    network = UNet(
        channels=args.channels,
        levels=args.levels,
        groups=min(32, args.channels // 2),
        attention_everywhere=args.attention_everywhere,
        dropout_rate=args.dropout,
        remat=remat,
        scan=args.loops,
        fused=args.fused,
        dtype=args.dtype,
    )
    loss = {"first": FirstOrder, "second": SecondOrder}[args.step]()
    images = np.zeros((args.batch_size, SIZE, SIZE, 3), np.uint8)
    batch = as_batch(images)
    trainer = Trainer(model_dir="unused", train_steps=1)
    program: Any = trainer.program(model_of(network, loss), (SIZE, SIZE, 3), batch)
    sharding = trainer.partitioner.batch_sharding
    shapes = jax.tree.map(
        lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding), batch
    )
    return program.step, program.abstract_state, shapes


def report(args: argparse.Namespace) -> None:
    """Print the table of one step."""
    card, step = CARDS[args.card], step_of(args)
    text = step.program.as_text()
    if args.save:
        pathlib.Path(args.save).write_text(text)
    found = list(kernels(*parse(text)))
    moved: collections.Counter[str] = collections.Counter()
    launches: collections.Counter[str] = collections.Counter()
    for each in found:
        moved[each.kind] += each.bytes * each.times
        launches[each.kind] += each.times
    seconds = seconds_by_kind(found, step, card, args)
    print("| kind | GB | kernels | ms |\n|---|--:|--:|--:|")
    for kind, size in moved.most_common():
        print(f"| {kind} | {size / 1e9:.1f} | {launches[kind]:,} | {1e3 * seconds[kind]:.1f} |")
    whole, memory = sum(seconds.values()), step.program.memory_analysis()
    print(
        f"| all | {moved.total() / 1e9:.1f} | {launches.total():,} | {1e3 * whole:.1f} |\n\n"
        f"{step.useful / 1e12:.2f} TFLOP ({step.done / 1e12:.2f} with what remat works out again); "
        f"temporaries {memory.temp_size_in_bytes / 2**30:.1f} GiB, arguments "
        f"{memory.argument_size_in_bytes / 2**30:.2f} GiB; traced in {step.traced:.0f} s, "
        f"compiled in {step.compiled:.0f} s\n"
    )
    for name, other in CARDS.items():
        whole = sum(seconds_by_kind(found, step, other, args).values())
        print(
            f"- {name}: {1e3 * whole:.1f} ms, {args.batch_size / whole:,.0f} images/s, "
            f"{step.useful / whole / peak_of(other, args):.1%} of peak"
        )
    if args.float32_buffers:
        report_float32(found, args)


def peak_of(card: Card, args: argparse.Namespace) -> float:
    return card.tf32 if args.dtype == "float32" else card.bfloat16


def seconds_by_kind(
    found: list[Kernel], step: Step, card: Card, args: argparse.Namespace
) -> dict[str, float]:
    """Return the estimated time of each kind; all operations are counted with the convolutions."""
    seconds: dict[str, float] = collections.defaultdict(float)
    for each in found:
        by_bytes = each.bytes / (card.bandwidth * args.bandwidth_share)
        seconds[each.kind] += each.times * max(by_bytes, 1e-6 * args.kernel_us)
    by_operations = step.done / (peak_of(card, args) * args.peak_share)
    seconds["convolution"] = max(by_operations, seconds["convolution"])
    return seconds


def report_float32(found: list[Kernel], args: argparse.Namespace) -> None:
    """Print the kernels whose results hold float32 of the size of a block's features."""
    least = 4 * args.batch_size * SIZE * SIZE * args.channels
    large = [e for e in found if has_float32(e.instruction.shape, least)]
    print(f"\nfloat32 results as large as a block's features: {len(large)} kernels")
    for each in large[:20]:
        print(f"- {each.instruction.shape} {each.kind}: {origin(each.instruction.line)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card", choices=sorted(CARDS), default="h200")
    parser.add_argument("--step", choices=("first", "second"), default="first")
    for name, default in (("channels", 128), ("levels", 32), ("batch_size", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--remat", default=None)
    parser.add_argument("--save", default=None, help="write the program to this file")
    for name in ("loops", "fused", "attention_everywhere", "float32_buffers"):
        parser.add_argument(f"--{name}", action="store_true")
    for name, value in (("peak_share", 0.75), ("bandwidth_share", 0.9), ("kernel_us", 3.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    args = parser.parse_args()
    if importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
        sys.exit(
            "No `jax_plugins.xla_cuda12` on PYTHONPATH: see `benchmarks/gpu_hlo.py`, first lines."
        )
    print(
        f"{datetime.date.today()}, jax {jax.__version__}, {' '.join(sys.argv[1:]) or 'defaults'}\n"
    )
    report(args)


if __name__ == "__main__":
    main()
