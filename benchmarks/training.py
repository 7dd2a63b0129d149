"""What a training step costs, in time and memory, beside a bare gradient of the same network.

    python -m benchmarks.training [--channels=64] [--levels=2] [--size=16] [--batch_size=8]
        [--dtype=bfloat16] [--repeats=9] [--peak_tflops=989]
        [--only first memory scan schedules compile start]

    python -m benchmarks.training --channels=128 --levels=32 --groups=32 --size=32 \\
        --batch_size=64 --dtype=bfloat16 --peak_tflops=989 --loops --only first
                                                                 CIFAR-10 as published, on a GPU

`bare` is a jitted value and gradient of the mean square of the network's output less a target, and
nothing else. `first` and `second` are whole steps of the trainer: encoding, noise, loss, gradient,
AdamW, moving average and sums of the metrics. Steps take turns, so that a busy machine slows all;
medians are printed. FLOPs are counted from the traced program. `kept` is what the gradient keeps
from the forward pass, parameters included; `scratch` what the compiler sets aside beside arguments
and results. On a CPU the compiler moves what remat works out once more to where it likes, so that
scratch falls in loops alone. `schedules` are steps with a gamma(t) that has parameters.

The last tables: seconds to trace and to compile a gradient by depth, with and without loops; and
seconds from an empty process to the end of the first step, with an empty and with a filled
compilation cache.
"""

import argparse
import dataclasses
import datetime
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin.devices import compilation_cache, flops
from idode_gin.encoding import Encoding
from idode_gin.losses.first_order import FirstOrder
from idode_gin.losses.second_order import SecondOrder
from idode_gin.models import DiffusionODE
from idode_gin.networks.unet import UNet
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.linear import Linear
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.time_samplers.uniform import Uniform
from idode_gin.training.trainer import Trainer

Step = Callable[[], Any]
DEPTHS = (4, 8, 16, 32)
LINEAR = Linear(gamma_min=-13.3, gamma_max=5.0)
LEARNED = (LearnedLinear(), Monotone(), Tabulated())


def network_of(args: argparse.Namespace, **others: Any) -> UNet:
    sizes = {"channels": args.channels, "levels": args.levels, "groups": args.groups}
    sizes["scan"] = args.loops
    return UNet(dtype=args.dtype, **{**sizes, **others})


def model_of(network: UNet, loss: Any, time: AbstractTime = LINEAR) -> DiffusionODE:
    return DiffusionODE(
        network=network,
        schedule=StraightPath(),
        time=time,
        parameterization=Velocity(),
        time_sampler=Uniform(),
        loss=loss,
        encoding=Encoding(levels=256),
    )


def batch_of(args: argparse.Namespace) -> dict[str, Any]:
    shape = (args.batch_size, args.size, args.size, 3)
    return as_batch(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def as_batch(images: np.ndarray) -> dict[str, Any]:
    """What the trainer is fed, of uint8 `[B, H, W, C]`."""
    count = len(images)
    return {
        "image": images,
        "conditioning": np.zeros((count, 1), np.float32),
        "position": np.arange(count, dtype=np.int32),
        "index": np.arange(count, dtype=np.int32),
        "mask": np.ones(count, np.float32),
    }


@dataclasses.dataclass
class Compiled:
    """A step that can be taken again and again, and what is known before it is."""

    take: Step
    kept: int
    memory: int
    flops: int
    seconds: float


def compile_step(step: Any, *arguments: Any) -> tuple[Any, dict[str, Any]]:
    began = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis().temp_size_in_bytes
    return compiled, {"memory": memory, "flops": flops.count(step, *arguments), "seconds": seconds}


def bytes_kept(loss: Callable[[Any], Any], params: Any) -> int:
    """Of the arrays that stand between the value and the gradient; nothing is computed."""
    pull = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


def bare(args: argparse.Namespace) -> Compiled:
    network, shape = network_of(args), (args.size, args.size, 3)
    params = jax.jit(lambda: network.init(jax.random.key(0), shape))()
    z, target = jax.random.normal(jax.random.key(1), (2, args.batch_size, *shape))
    moment, conditioning = jnp.linspace(0, 1, args.batch_size), jnp.zeros((args.batch_size, 1))

    def loss(params: Any, z: Any, target: Any) -> Any:
        return jnp.mean((network(params, z, moment, conditioning) - target) ** 2)

    compiled, known = compile_step(jax.jit(jax.value_and_grad(loss)), params, z, target)
    kept = bytes_kept(lambda params: loss(params, z, target), params)
    return Compiled(take=lambda: compiled(params, z, target), kept=kept, **known)


def gradient(args: argparse.Namespace) -> Compiled:
    """The loss of the trainer and its gradient, without what updates the state."""
    model, batch = model_of(network_of(args), FirstOrder()), jax.device_put(batch_of(args))
    params = jax.jit(lambda: model.init(jax.random.key(0), batch["image"].shape[1:]))()
    step = jax.jit(jax.value_and_grad(model.loss_fn, has_aux=True))
    compiled, known = compile_step(step, params, batch, jax.random.key(1))
    kept = loss_kept(model, params, batch, 1)
    return Compiled(take=lambda: compiled(params, batch, jax.random.key(1)), kept=kept, **known)


def loss_kept(model: DiffusionODE, params: Any, batch: Any, parts: int) -> int:
    part = jax.tree.map(lambda each: each[::parts], batch)
    return bytes_kept(lambda params: model.loss_fn(params, part, jax.random.key(1))[0], params)


@functools.cache
def initial_state(
    channels: int, levels: int, groups: int, size: int, scan: bool, time: AbstractTime
) -> Any:
    """The same for every step of these sizes, so that it is compiled once."""
    network = UNet(channels=channels, levels=levels, groups=groups, scan=scan)
    blank = {"batch_size": 1, "size": size}
    batch = batch_of(argparse.Namespace(**blank))
    trainer = Trainer(model_dir="unused", train_steps=1)
    return trainer.program(model_of(network, FirstOrder(), time), (size, size, 3), batch).init()


def trained(
    args: argparse.Namespace,
    loss: Any,
    parts: int = 1,
    time: AbstractTime = LINEAR,
    **network: Any,
) -> Compiled:
    model, batch = model_of(network_of(args, **network), loss, time), batch_of(args)
    trainer = Trainer(model_dir="unused", train_steps=1, num_microbatches=parts)
    program = trainer.program(model, batch["image"].shape[1:], batch)
    placed = trainer.partitioner.put_batch(batch, args.batch_size)
    compiled, known = compile_step(program.step, program.abstract_state, placed)
    scan = network.get("scan", args.loops)
    initial = initial_state(args.channels, args.levels, args.groups, args.size, scan, time)
    states = [jax.tree.map(jnp.copy, initial)]
    kept = loss_kept(model, program.abstract_state.params, batch, parts)

    def take() -> Any:
        state, health = compiled(states.pop(), placed)
        states.append(state)
        return health

    return Compiled(take=take, kept=kept, **known)


def steps(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Compiled]]]:
    first = FirstOrder()
    yield "bare", lambda: bare(args)
    yield "first", lambda: trained(args, first)
    if "first" in args.only:
        yield "first, gradient alone", lambda: gradient(args)
        yield "first, dropout 0.1", lambda: trained(args, first, dropout_rate=0.1)
        yield "second", lambda: trained(args, SecondOrder())
    if "memory" in args.only:
        yield "first, 2 microbatches", lambda: trained(args, first, parts=2)
        yield "first, 4 microbatches", lambda: trained(args, first, parts=4)
        yield "first, remat full", lambda: trained(args, first, remat="full")
        yield "first, remat convolutions", lambda: trained(args, first, remat="convolutions")
    if "schedules" in args.only:
        for time in LEARNED:
            yield (
                f"first, {type(time).__name__}",
                functools.partial(trained, args, first, time=time),
            )
    if "scan" in args.only:
        yield "first, scan", lambda: trained(args, first, scan=True)
        yield (
            "first, scan and remat full",
            lambda: trained(args, first, scan=True, remat="full"),
        )


def report_steps(args: argparse.Namespace) -> None:
    made = {}
    for name, make in steps(args):
        made[name] = make()
        jax.block_until_ready(made[name].take())
        print(f"{name}: compiled in {made[name].seconds:.1f} s", file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(args.repeats):
        for name, each in made.items():
            began = time.perf_counter()
            jax.block_until_ready(each.take())
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(
        "| step | ms | images/s | x first | GFLOP | x first | kept MB | scratch MB | compile s "
        "| of peak |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name, each in made.items():
        share = each.flops / medians[name] / (args.peak_tflops * 1e12) if args.peak_tflops else None
        print(
            f"| {name} | {1e3 * medians[name]:.1f} | {args.batch_size / medians[name]:,.0f} "
            f"| {medians[name] / medians['first']:.2f} | {each.flops / 1e9:.2f} "
            f"| {each.flops / made['first'].flops:.2f} | {each.kept / 1e6:.1f} "
            f"| {each.memory / 1e6:.1f} | {each.seconds:.1f} "
            f"| {'-' if share is None else f'{share:.1%}'} |"
        )
    paired = [b / f for b, f in zip(times["bare"], times["first"], strict=True)]
    print(f"\nimages/s of `first` over those of `bare`: {statistics.median(paired):.3f}")
    for name in (
        "second",
        "first, dropout 0.1",
        *(f"first, {type(each).__name__}" for each in LEARNED),
    ):
        if name in times:
            paired = [s / f for s, f in zip(times[name], times["first"], strict=True)]
            print(f"seconds of `{name}` over those of `first`: {statistics.median(paired):.3f}")


def report_compile_time() -> None:
    """Tiny channels: what is compiled is the same, and what is run is nothing."""
    print("\n| levels | unrolled: trace, compile s | in loops: trace, compile s |\n|--:|--:|--:|")
    for levels in DEPTHS:
        cells = []
        for scan in (False, True):
            network = UNet(channels=8, groups=4, levels=levels, fourier_exponents=(1,), scan=scan)
            params = jax.eval_shape(lambda n=network: n.init(jax.random.key(0), (4, 4, 3)))
            z, one = jnp.zeros((2, 4, 4, 3)), jnp.zeros(2)

            def loss(params: Any, network: UNet = network, z: Any = z, one: Any = one) -> Any:
                return jnp.mean(network(params, z, one, one[:, None]) ** 2)

            began = time.perf_counter()
            lowered = jax.jit(jax.grad(loss)).lower(params)
            traced = time.perf_counter()
            lowered.compile()
            cells.append(f"{traced - began:.1f}, {time.perf_counter() - traced:.1f}")
        print(f"| {levels} | {' | '.join(cells)} |", flush=True)


def report_start(args: argparse.Namespace) -> None:
    """Each in a process of its own; imports are part of the time."""
    print("\n| compilation cache | s to the end of the first step |\n|---|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for state in ("empty", "filled"):
            began = time.perf_counter()
            command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:]]
            subprocess.run([*command, f"--one_step={folder}"], check=True)
            print(f"| {state} | {time.perf_counter() - began:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("channels", 64), ("levels", 2), ("groups", 8), ("size", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peak_tflops", type=float, default=None)
    tables = ("first", "memory", "scan", "schedules", "compile", "start")
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables))
    parser.add_argument("--loops", action="store_true", help="UNet.scan in every step")
    parser.add_argument("--one_step", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_step:
        compilation_cache.use(args.one_step)
        jax.block_until_ready(trained(args, FirstOrder()).take())
        return
    device = jax.devices()[0]
    print(
        f"{datetime.date.today()}, jax {jax.__version__}, {device.device_kind} ({device.platform});"
        f" {args.channels} channels, {args.levels} levels, {args.size} x {args.size} x 3, batch "
        f"{args.batch_size}, {args.dtype or 'float32'}\n"
    )
    if {"first", "memory", "scan", "schedules"} & set(args.only):
        report_steps(args)
    if "compile" in args.only:
        report_compile_time()
    if "start" in args.only:
        report_start(args)


if __name__ == "__main__":
    main()
