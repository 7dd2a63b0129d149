"""Counts of operations, speed, time by phase, the profiler window, W&B."""

import contextlib
import functools
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from idode_gin import checks
from idode_gin.devices import flops
from idode_gin.losses import first_order
from idode_gin.reports import metrics, plots, wandb_writer
from idode_gin.runs import integrand, run_inputs
from idode_gin.training import meters, profiling, setup, throughput
from idode_gin.training.profiling import ProfileWindow


def products(x, weights):
    for weight in weights:
        x = jnp.tanh(x @ weight)
    return x.sum()


def scanned(x, weights):
    return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0].sum()


X, WEIGHTS = jnp.ones((8, 16)), jnp.ones((5, 16, 16))
FORWARD = 5 * 2 * 8 * 16 * 16


@pytest.mark.parametrize("function", [products, scanned, jax.checkpoint(products)])
def test_products_are_counted_however_they_are_looped_over(function):
    assert flops.count(jax.jit(function), X, WEIGHTS) == FORWARD


def test_a_gradient_costs_twice_its_function_and_recomputing_once_more():
    gradient = jax.grad(products, argnums=(0, 1))
    assert flops.count(jax.jit(gradient), X, WEIGHTS) == 3 * FORWARD
    gradient = jax.grad(scanned, argnums=(0, 1))
    assert flops.count(jax.jit(gradient), X, WEIGHTS) == 3 * FORWARD
    gradient = jax.grad(jax.checkpoint(products), argnums=(0, 1))
    assert 3 * FORWARD < flops.count(jax.jit(gradient), X, WEIGHTS) <= 4 * FORWARD


def convolution(x, kernel, padding="VALID", stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers
    )


def test_counting_spares_the_first_call_its_tracing(tmp_path):
    """The update of the published models takes many seconds to trace."""
    traced = []

    class Counted(first_order.FirstOrder):
        def __call__(self, *arguments):
            traced.append(1)
            return super().__call__(*arguments)

    tiny.trainer(tmp_path, 1).run(tiny.model(loss=Counted()), tiny.config())
    assert len(traced) == 2  # the names of its metrics, and the update


def test_convolutions_agree_with_the_estimate_of_xla():
    """Without padding, which the two count differently."""
    function = jax.jit(convolution)
    x, kernel = jnp.ones((4, 8, 8, 16)), jnp.ones((3, 3, 16, 32))
    counted = flops.count(function, x, kernel)
    assert counted == 2 * 4 * 6 * 6 * 9 * 16 * 32
    assert counted == function.lower(x, kernel).cost_analysis()["flops"]


@pytest.mark.parametrize("stride", [1, 2])
def test_each_half_of_a_convolutions_gradient_costs_what_it_does(stride):
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((1, 1, 4, 6))

    def loss(x, kernel):
        return (convolution(x, kernel, stride=stride) ** 2).sum()

    forward = flops.count(jax.jit(loss), x, kernel)
    both = flops.count(jax.jit(jax.grad(loss, argnums=(0, 1))), x, kernel)
    np.testing.assert_allclose(both, 3 * forward, rtol=0.01)


def test_the_dearer_branch_counts():
    def either(x, weights):
        return jax.lax.cond(x[0, 0] > 0, products, lambda x, _: x.sum(), x, weights)

    assert flops.count(jax.jit(either), X, WEIGHTS) == FORWARD


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v5p", "float32", None),
        ("cpu", "float32", None),
        ("Mine 2", "float32", 7.0),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 1.0),
        ("NVIDIA A100-PCIE-40GB", "bfloat16", 2.0),
        ("NVIDIA A100-PCIE-40GB", "float32", 156e12),
        ("NVIDIA H200 NVL", "bfloat16", 835e12),
    ],
)
def test_peaks_by_the_longest_beginning(kind, dtype, expected):
    table = {"Mine": {"float32": 7.0}, "NVIDIA A100-SXM4": {"bfloat16": 1.0}}
    table["NVIDIA A100"] = {"bfloat16": 2.0}
    assert throughput.peak_flops(kind, dtype, table) == expected


def test_rates_and_the_share_of_the_peak():
    rates = functools.partial(throughput.rates, batch_size=32, devices=4, flops=1e9)
    assert rates(0.5, peak=5e9) == {
        "time/images_per_second": 64.0,
        "time/step_seconds": 0.5,
        "time/steps_per_second": 2.0,
        "time/images_per_second_per_device": 16.0,
        "time/flops_per_second": 2e9,
        "time/flops_share": 0.1,
    }
    assert "time/flops_share" not in rates(0.5, peak=None)


@pytest.fixture
def clock_at(monkeypatch):
    """Return a function that sets the time."""
    now = [0.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])

    def at(seconds):
        now[0] = seconds

    return at


def test_every_second_belongs_to_one_phase(clock_at):
    clock = throughput.Clock(0.0)
    clock_at(3)
    clock.enter("train")

    with clock.inside("data"):
        clock_at(5)
    clock_at(11)
    with clock.inside("eval"):
        clock_at(12)
    with contextlib.suppress(KeyError), clock.inside("checkpoint"):
        clock_at(20)
        raise KeyError
    clock_at(24)
    assert clock.training() == 2 + 10 + 8
    row = clock.lap()
    seconds = {"start": 3, "data": 2, "train": 10, "eval": 1, "checkpoint": 8}
    assert row == {f"time/{name}_seconds": each for name, each in seconds.items()} | {
        "time/goodput": 10 / 24
    }
    clock_at(25)
    assert clock.lap()["time/train_seconds"] == 1
    assert clock.seconds == {**seconds, "train": 11, "lost": 0}


def test_goodput_is_over_all_processes_and_counts_what_was_done_twice(clock_at):
    spent = {"time/train_seconds": 6.0, "time/start_seconds": 0.5, "time/lost_seconds": 1.5}
    earlier = [{"step": 1, **spent, "time/x": 9.0}]
    dropped = [{"step": 2, "time/train_seconds": 3.0, "time/eval_seconds": 1.0}]
    clock = throughput.Clock(0.0, earlier, dropped)
    clock.enter("train")
    clock_at(8)
    row = clock.lap()
    assert row["time/lost_seconds"] == 4
    assert row["time/goodput"] == (6 + 8) / (6 + 2 + 4 + 8)
    assert "time/lost_seconds" not in clock.lap()


def test_speed_leaves_out_compilation_and_evaluations(tmp_path, clock_at):
    prepared = tiny.trainer(tmp_path, 6)._setup(tiny.model(), tiny.config(10), None)
    start = setup.Start(prepared.program.init(), 0, None, is_resumed=False, has_trained=False)
    log = metrics.MetricsLog(None, keep_up_to=-1)
    with meters.Meters(prepared, start, log, 0.0, None, None) as measured:
        assert measured.summary()["images_per_second"] is None
        clock_at(100)
        measured.after_step(1, ())
        assert "time/step_seconds" not in measured.lap(1)
        clock_at(102)
        row = measured.lap(5)
        assert (row["time/images_per_second"], row["time/step_seconds"]) == (20.0, 0.5)
        with measured.clock.inside("eval"):
            clock_at(150)
        clock_at(152)
        measured.lap(7)
        assert measured.summary()["images_per_second"] == 60 / 4


def test_memory_is_the_devices_or_else_the_processs(monkeypatch):
    (host,) = throughput.peak_bytes().items()
    assert host[0] == "peak_host_bytes"
    assert 2**26 < host[1] < 2**40
    devices = [types.SimpleNamespace(memory_stats=lambda b=b: b) for b in (None, {}, {"a": 1})]
    devices += [
        types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (5, 9, 7)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert throughput.peak_bytes() == {"peak_device_bytes": 9}


# Whole runs.


class FakeWandB(types.ModuleType):
    """Records calls of wandb."""

    def __init__(self):
        super().__init__("wandb")
        self.told, self.rows = [], []

    def init(self, **settings):
        self.told.append(settings)
        return self

    def define_metric(self, *names, **settings):
        self.told.append((names, settings))

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.told.append("finished")


def test_a_watched_run(tmp_path, monkeypatch, capsys):
    """Rows, summary, profile and W&B of one run, stopped and resumed."""
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    traced = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: traced.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: traced.append("stopped"))
    changes = {
        "wandb": wandb_writer.WandB(project="mine"),
        "peak_flops": {"cpu": {"float32": 1e12}},
        "profile": ProfileWindow(start=1, steps=2),
    }
    folder = tmp_path / "run"
    for steps in (4, 6):
        trainer = tiny.trainer(folder, steps, **changes)
        summary = trainer.run(tiny.model(), tiny.config(), tiny.config(8))
    assert traced == [str(folder / "train" / "profile"), "stopped"]
    told = capsys.readouterr().out
    assert "Steps 1 to 3 are traced" in told
    assert "Nothing is profiled: the window begins at step 1, training at step 4" in told

    rows = metrics.read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 4, 6]
    row = rows[0]
    # The network: [4, 2] @ [2, 8] and [4, 8] @ [8, 32]; gradients of all but the inputs.
    hidden, out = 2 * 4 * 2 * 8, 2 * 4 * 8 * 32
    assert summary["flops_per_step"] == 2 * hidden + 3 * out
    per_second = row["time/steps_per_second"] * summary["flops_per_step"]
    assert row["time/flops_per_second"] == pytest.approx(per_second)
    assert row["time/flops_share"] == pytest.approx(per_second / 1e12 / jax.device_count())
    assert row["time/steps_per_second"] == pytest.approx(1 / row["time/step_seconds"])
    phases = [f"time/{phase}_seconds" for phase in throughput.PHASES]
    seconds = sum(row[name] for row in rows[:2] for name in phases)
    assert seconds == pytest.approx(rows[1]["time/wall_seconds"], abs=0.1)
    for each in rows[:2]:
        assert 0 <= each["time/goodput"] < 1
        assert each["time/peak_host_bytes"] > 0
    total = sum(summary["seconds"].values())
    assert summary["goodput"] == pytest.approx(summary["seconds"]["train"] / total)
    assert summary["seconds"]["train"] > sum(row["time/train_seconds"] for row in rows) - 1e-9
    assert summary["flops_share"] > 0

    settings = [each for each in fake.told if isinstance(each, dict)]
    assert [each["id"] for each in settings] == [(folder / "wandb_id").read_text()] * 2
    assert settings[0]["name"] == "run"
    assert settings[0]["config"]["optimizer"] == "AdamW"
    assert fake.told.count("finished") == 2
    assert [row["step"] for row in fake.rows] == [3, 4, 6]
    assert fake.rows[0]["train/bpd"] == rows[0]["train/bpd"]
    assert "train/loss_by_gamma" not in fake.rows[0]
    json.dumps(summary, allow_nan=False)


def test_a_real_trace_is_closed_when_the_run_ends_inside_it(tmp_path):
    profiler = profiling.Profiler(ProfileWindow(start=2, steps=5), tmp_path, print)
    profiler.before(1)
    assert list(tmp_path.iterdir()) == []
    profiler.before(2)
    jnp.ones(3).sum().block_until_ready()
    profiler.close()
    profiler.close()
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_wandb_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="not installed: pip install wandb"):
        wandb_writer.WandB(project="mine")


def test_wandb_that_refuses_is_an_error_with_a_way_out(monkeypatch, tmp_path):
    class Refused(Exception):
        """W&B's own errors are no subclasses of OSError or ValueError."""

    def refuse(*_, **__):
        raise Refused("api_key not configured (no-tty).")

    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = wandb_writer.WandB(project="mine")
    message = r"Biases failed: api_key not configured \(no-tty\)\. Log in by `wandb login`"
    writer = settings.open(tmp_path, {})
    for name, call in (
        ("log", lambda: writer.write(1, {})),
        ("finish", writer.close),
        ("init", lambda: settings.open(tmp_path, {})),
    ):
        monkeypatch.setattr(fake, name, refuse)
        with pytest.raises(OSError, match=message):
            call()


def test_an_error_that_ends_a_run_is_not_replaced_by_one_of_wandb(monkeypatch, tmp_path):
    """The exit code of a run that was asked to stop decides if it is requeued."""

    def ask_to_stop():
        with contextlib.closing(wandb_writer.WandB(project="mine").open(tmp_path, {})):
            raise checks.Preempted("stopped")

    def refuse():
        raise RuntimeError("network")

    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandB())
    monkeypatch.setattr(fake, "finish", refuse)
    with pytest.raises(checks.Preempted):
        ask_to_stop()


def test_wandb_needs_a_project(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandB())
    with pytest.raises(ValueError, match="project"):
        wandb_writer.WandB(project="")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ProfileWindow(start=-1), r"ProfileWindow\.start"),
        (lambda: ProfileWindow(steps=0), r"ProfileWindow\.steps"),
        (
            lambda: tiny.trainer("m", 6, profile=ProfileWindow(start=3, steps=4)),
            r"ends at step 7 .*beyond the last step, 6",
        ),
        (lambda: tiny.trainer("m", peak_flops={"cpu": {"float32": 0.0}}), "peak_flops"),
        (lambda: tiny.trainer("m", gamma_bins=-1), "gamma_bins"),
    ],
)
def test_numbers_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("batch_size", "together", "used", "stated"),
    [(8, 32, 8, 8), (32, 32, 20, None), (32, 8, 16, 16), (32, 5, 20, None)],
)
def test_the_integrand_is_that_of_the_first_images(
    batch_size, together, used, stated, tmp_path, monkeypatch
):
    """Whatever the order of the split in an evaluation; of each once, if a batch is larger."""
    drawn = []
    monkeypatch.setattr(integrand, "IMAGES", together)
    monkeypatch.setattr(plots, "plot_integrand", lambda *given: drawn.append(given))
    model, split = tiny.model(), tiny.split()
    tiny.trainer(tmp_path, 2).run(
        model, tiny.config(), tiny.config(batch_size, shuffle=True, seed=3)
    )
    params = run_inputs.load_params(model, tiny.SHAPE, str(tmp_path), True).params
    ((gammas, values, _, count),) = drawn
    first = {"image": split.images[:used], "conditioning": split.conditioning[:used]}
    first["index"] = np.arange(used, dtype=np.int32)
    expected = jax.jit(model.integrand)(params, first, jax.random.key(0), gammas)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert count == stated
