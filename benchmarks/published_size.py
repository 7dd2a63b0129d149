"""A network of published size: training speed, then scoring in several precisions.

    python -m benchmarks.published_size --peak_tflops=989,495,67            on a GPU
    python -m benchmarks.published_size --images=patches.npz …              without TensorFlow
    python -m benchmarks.published_size --channels=16 --levels=2 --batch_size=8 --batches=4 \\
        --unrolled --seconds=20 --scored=8 --reference=64           a trial on a CPU

    train    one whole step of the trainer, batch on the device: time, share of the peak, memory
    score    the network so trained for `seconds` on photo patches, on patches held out: what the
             precision moves bits per dim by, the steps of Adams for a mean error of 1e-3, images/s

Precisions: `bfloat16` blocks; `float32` as the device does by itself, which on recent GPUs is TF32
(10 bits of mantissa); `highest`, true float32. The reference of all is `highest` with `reference`
steps. Fourier features are off unless asked for: the ODE of an undertrained network with them
cannot be solved to 1e-3 (see results/likelihood.md).

`--images` names an .npz with `train`, `held_out`: uint8 `[N, H, W, C]`, as `--write_images` makes.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.training import as_batch
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.devices import flops
from idode_gin.encoding import Encoding
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot_grids import Grids
from idode_gin.losses.first_order import FirstOrder
from idode_gin.models import DiffusionODE
from idode_gin.networks.unet import UNet
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.time.linear import Linear
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.time_samplers.closed_form_importance import VPVelocityImportance
from idode_gin.training.optimizers import AdamW
from idode_gin.training.trainer import Trainer

TARGET = 1e-3
STEPS = (8, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256, 512)
PRECISIONS = {
    "bfloat16": ("bfloat16", None),
    "float32": (None, None),
    "highest": (None, "highest"),
}
"""Of each: dtype of the blocks, and jax_default_matmul_precision."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Of both parts, uint8 `[N, H, W, C]`."""

    train: np.ndarray
    held_out: np.ndarray

    @classmethod
    def load(cls, file: str | None) -> "Images":
        """From a file, or photo patches."""
        if file is not None:
            with np.load(file) as found:
                return cls(found["train"], found["held_out"])
        from tasks import photo_patches as photos  # needs TensorFlow

        held_out = [photos.load_split(each) for each in ("test", "validation")]
        return cls(photos.load_split("train"), np.concatenate(held_out))


def model_of(args: argparse.Namespace, dtype: str | None, **network: Any) -> DiffusionODE:
    return DiffusionODE(
        network=UNet(
            channels=args.channels,
            levels=args.levels,
            groups=min(32, args.channels // 2),
            fourier_exponents=tuple(args.fourier),
            scan=not args.unrolled,
            fused=args.fused,
            dropout_rate=args.dropout,
            dtype=dtype,
            **network,
        ),
        schedule=VariancePreserving(),
        time=Linear(gamma_min=-13.3, gamma_max=5.0),
        parameterization=Velocity(),
        time_sampler=VPVelocityImportance(),
        loss=FirstOrder(),
        encoding=Encoding(levels=256),
    )


def say(line: str) -> None:
    print(line, flush=True)


def note(line: str) -> None:
    print(f"{time.strftime('%X')} {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def arithmetic(name: str) -> Iterator[str | None]:
    """Inside, XLA multiplies as the precision says; gives the dtype of the blocks."""
    dtype, matmul = PRECISIONS[name]
    with jax.default_matmul_precision(matmul) if matmul else contextlib.nullcontext():
        yield dtype


class Training:
    """The trainer's step, compiled, and its state."""

    def __init__(
        self, args: argparse.Namespace, images: np.ndarray, dtype: str | None, remat: str | None
    ) -> None:
        self._images, self._random = images, np.random.default_rng(0)
        self._batch_size = args.batch_size
        trainer = Trainer(
            model_dir="unused",
            train_steps=1,
            ema_rate=0.99,
            optimizer=AdamW(learning_rate=args.learning_rate),
        )
        model, batch = model_of(args, dtype, remat=remat), self._draw()
        self._put = functools.partial(trainer.partitioner.put_batch, batch_size=args.batch_size)
        program: Any = trainer.program(model, batch["image"].shape[1:], batch)
        self.state = program.init()
        self.flops = flops.count(program.step, program.abstract_state, batch)
        began = time.perf_counter()
        self._step = program.step.lower(program.abstract_state, self._put(batch)).compile()
        self.compile_seconds = time.perf_counter() - began
        found = self._step.memory_analysis()
        self.bytes = found.argument_size_in_bytes + found.temp_size_in_bytes
        note(f"compiled in {self.compile_seconds:.1f} s, {self.bytes / 2**30:.1f} GiB")

    def _draw(self) -> dict[str, Any]:
        index = self._random.integers(0, len(self._images), self._batch_size)
        return as_batch(self._images[index])

    def go(self, batches: int) -> float:
        """Seconds, of batches that wait on the device."""
        ready = [self._put(self._draw()) for _ in range(batches)]
        began = time.perf_counter()
        for batch in ready:
            self.state, _ = self._step(self.state, batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def report_training(args: argparse.Namespace, images: np.ndarray, peaks: dict[str, float]) -> None:
    say("| blocks | remat | ms a step | images/s | GFLOP an image | of peak | GiB | compile s |")
    say("|---|---|--:|--:|--:|--:|--:|--:|")
    for name, remat in (each.split(":") for each in args.cases):
        try:
            with arithmetic(name) as dtype:
                training = Training(args, images, dtype, remat or None)
                training.go(2)
                seconds = statistics.median(training.go(args.batches) for _ in range(3))
        except jax.errors.JaxRuntimeError as error:  # out of memory is a result
            say(f"| {name} | {remat or 'none'} | {str(error).splitlines()[0][:120]} |")
            continue
        each = seconds / args.batches
        share = f"{training.flops / each / peaks[name]:.1%}" if name in peaks else "-"
        say(
            f"| {name} | {remat or 'none'} | {1e3 * each:.1f} | {args.batch_size / each:,.0f} "
            f"| {training.flops / args.batch_size / 1e9:.1f} | {share} "
            f"| {training.bytes / 2**30:.1f} | {training.compile_seconds:.0f} |"
        )
        del training


def trained_params(args: argparse.Namespace, images: np.ndarray) -> Any:
    training, steps = Training(args, images, "bfloat16", None), 0
    began = time.perf_counter()
    while time.perf_counter() - began < args.seconds:
        training.go(args.batches)
        steps += args.batches
    window = jax.device_get(training.state.window)
    say(
        f"\nTrained {steps} steps of {args.batch_size} in bfloat16 in "
        f"{time.perf_counter() - began:.0f} s; loss {float(window['loss'] / window['count']):.3f}."
    )
    return training.state.ema


class Scoring:
    """Bits per dim in one precision, on any number of equal steps of Adams."""

    def __init__(self, args: argparse.Namespace, images: np.ndarray, name: str, count: int) -> None:
        self._name, self._count = name, count
        with arithmetic(name) as dtype:
            estimator = ODELikelihood(dequantizer=TruncatedNormal())
            batch = as_batch(images[np.arange(count) % len(images)])
            key = jax.random.key(1)
            self._grids = Grids(model_of(args, dtype), batch, key, estimator, 1024)
        self._found: dict[int, np.ndarray] = {}

    def __call__(self, params: Any, steps: int) -> np.ndarray:
        """Always of the same parameters."""
        if steps not in self._found:
            self._found[steps] = self._score(params, steps)
        return self._found[steps]

    def _score(self, params: Any, steps: int) -> np.ndarray:
        with arithmetic(self._name):
            return self._grids(params, steps)

    def images_per_second(self, params: Any, steps: int, repeats: int = 3) -> float:
        """Of the whole solve."""
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            self._score(params, steps)
            taken.append(time.perf_counter() - began)
        return self._count / statistics.median(taken)


def report_scoring(args: argparse.Namespace, images: np.ndarray, params: Any) -> None:
    note("reference")
    scored = {name: Scoring(args, images, name, args.scored) for name in PRECISIONS}
    half = scored["highest"](params, args.reference // 2)
    reference = scored["highest"](params, args.reference)
    moved = np.mean(np.abs(reference - half))
    say(
        f"\nReference: {args.scored} images held out, `highest`, {args.reference} steps, which "
        f"move figures by {moved:.1e} from half as many; mean {reference.mean():.4f} bpd."
    )
    needed: dict[str, int] = {}
    say("\n| steps | " + " | ".join(f"{name}: error, bias" for name in PRECISIONS) + " |")
    say("|--:|" + "--:|" * len(PRECISIONS))
    for steps in (*(each for each in STEPS if each < args.reference), args.reference):
        cells = []
        for name, score in scored.items():
            away = score(params, steps) - reference
            error = float(np.mean(np.abs(away)))
            cells.append(f"{error:.1e}, {np.mean(away):+.1e}")
            if error <= TARGET:
                needed.setdefault(name, steps)
        say(f"| {steps} | " + " | ".join(cells) + " |")
    say(f"\n| precision | steps for {TARGET:g} | images/s, {args.scored} side by side |")
    say("|---|--:|--:|")
    for name, score in scored.items():
        steps = needed.get(name, needed.get("highest", args.reference))
        speed = score.images_per_second(params, steps)
        shown = steps if name in needed else f"not reached; timed with {steps}"
        say(f"| {name} | {shown} | {speed:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("channels", 128), ("levels", 32), ("batch_size", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("batches", 10), ("scored", 64), ("reference", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--fourier", type=int, nargs="*", default=())
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--seconds", type=float, default=120, help="of training")
    parser.add_argument("--peak_tflops", default="", help="of bfloat16, float32 (TF32), highest")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--fused", action="store_true", help="train with UNet.fused")
    parser.add_argument("--unrolled", action="store_true", help="blocks one by one: see UNet.scan")
    parser.add_argument(
        "--parts", nargs="+", choices=("train", "score"), default=("train", "score")
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=("bfloat16:", "float32:convolutions"),
        help="precision:remat of the training steps that are timed",
    )
    parser.add_argument("--images", help="an .npz instead of the task")
    parser.add_argument("--write_images", help="only write that .npz")
    args = parser.parse_args()
    images = Images.load(args.images)
    if args.write_images:
        np.savez_compressed(args.write_images, train=images.train, held_out=images.held_out)
        return
    each = (float(value) * 1e12 for value in args.peak_tflops.split(",") if value)
    peaks = dict(zip(PRECISIONS, each, strict=False))
    device = jax.devices()[0]
    say(
        f"{datetime.date.today()}, jax {jax.__version__}, {device.device_kind} ({device.platform});"
        f" {args.channels} channels, {args.levels} levels{', unrolled' if args.unrolled else ''}"
        f"{', fused' if args.fused else ''}, dropout {args.dropout}, 32 x 32 x 3, batch "
        f"{args.batch_size}, Fourier exponents {tuple(args.fourier)}\n"
    )
    if "train" in args.parts:
        report_training(args, images.train, peaks)
    if "score" in args.parts:
        report_scoring(args, images.held_out, trained_params(args, images.train))


if __name__ == "__main__":
    main()
