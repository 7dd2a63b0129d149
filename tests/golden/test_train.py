"""Training steps: the optimizer, its schedule, the moving average, and whole published runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from idode_gin import numerics
from idode_gin.interop import official
from idode_gin.losses import first_order
from idode_gin.losses.base import LossDraws
from idode_gin.models import Draws
from idode_gin.training import optimizers, train_state, train_step

from . import cases, official_config, published

TERMS = {"recon": "recon", "latent": "prior", "diff": "diffusion", "diff2": "second_order"}


def optimizer_of(case):
    opt = case.config["opt"]
    return optimizers.AdamW(
        learning_rate=opt["learning_rate"],
        b1=opt["b1"],
        b2=opt["b2"],
        eps=opt["eps"],
        weight_decay=opt["weight_decay"],
        warmup_steps=opt["warmup"],
        decay_steps=opt["num_steps_train"] if opt["lr_decay"] else None,
        clip_norm=opt["clip"],
        accumulation_steps=opt["accum"],
    )


def batch_of(case, step, dtype):
    """The images of a step, and beside them the random arrays the published code consumed."""
    inputs = {name: array[step] for name, array in case.inputs.items()}
    size = inputs["images"].shape[0]
    offsets = np.arange(size) / size if case.model["antithetic_time_sampling"] else 0.0
    noise = jnp.asarray(inputs["eps"], dtype)
    probes = inputs["v"][None] if "v" in inputs else np.zeros((0, *noise.shape))
    return {
        "image": jnp.asarray(inputs["images"]),
        "conditioning": jnp.asarray(inputs["conditioning"], dtype)[:, None],
        "draws": Draws(
            u=jnp.mod(jnp.asarray(inputs["t"], dtype) + jnp.asarray(offsets, dtype), 1.0),
            loss=LossDraws(noise=noise, probes=jnp.asarray(probes, dtype)),
            reconstruction=jnp.asarray(inputs["eps_0"], dtype),
            dropout=None,
        ),
    }


def loss_fn_of(model):
    """Our loss at given random arrays; beside it the published reconstruction term."""

    def loss_fn(params, batch, key, global_batch_size):
        del key, global_batch_size
        loss, parts = model.objective(params, batch, batch["draws"])
        recon = published.reconstruction_term(
            model.end, batch["image"], batch["draws"].reconstruction
        )
        dims = int(np.prod(batch["image"].shape[1:]))
        return loss, parts | {"recon": numerics.nats_to_bpd(recon, dims)}

    return loss_fn


def adam_of(opt_state):
    """Adam's moments, wherever optax nests them."""
    found = jax.tree.leaves(
        opt_state, is_leaf=lambda each: isinstance(each, optax.ScaleByAdamState)
    )
    return next(each for each in found if isinstance(each, optax.ScaleByAdamState))


def in_recorded_order(case, tree):
    leaves = official.flatten(official.to_official(tree))
    return [np.asarray(leaves[tuple(key.split("/"))]) for key in case.keys]


def norms(case, tree):
    leaves = in_recorded_order(case, tree)
    return np.array([np.linalg.norm(leaf.astype(np.float64)) for leaf in leaves])


def slices(case, tree):
    return np.stack([cases.slice16(leaf) for leaf in in_recorded_order(case, tree)])


def minus(tree, other):
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), tree, other)


@functools.cache
def trained(name, dtype):
    """Run a case from its recorded start with the real update; return the recorded quantities."""
    case = cases.load(name)
    model, optimizer = official_config.model_of(case.model), optimizer_of(case)
    transformation = optimizer.build()
    loss_fn = loss_fn_of(model)
    start = jax.tree.map(jnp.asarray, cases.params(case, dtype))
    names = train_step.metric_names(loss_fn, start, batch_of(case, 0, dtype), jax.random.key(0))
    state = train_state.create(start, transformation, names)
    config = train_step.UpdateConfig(
        ema_rate=case.config["opt"]["ema_rate"],
        log_period=1,
        update_period=optimizer.accumulation_steps,
    )
    step_fn = train_step.make_train_step(loss_fn, transformation, jax.random.key(0), config)
    # A handful of steps: compiling fast matters more than running fast.
    update = jax.jit(step_fn, compiler_options={"xla_backend_optimization_level": 0})
    rows = []
    for step in range(case.config["steps"]):
        rate = optimizer.learning_rate_at(step)
        state, _ = update(state, batch_of(case, step, dtype))
        rows.append(row_of(case, state, start) | {"lr": np.asarray(rate)})
    computed = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    adam = adam_of(state.opt_state)
    computed |= {
        "delta_slice16": slices(case, minus(state.params, start)),
        "ema_delta_slice16": slices(case, minus(state.ema, start)),
        "mu_slice16": slices(case, adam.mu),
        "nu_slice16": slices(case, adam.nu),
        "adam_count": np.asarray(adam.count),
        "state_step": np.asarray(state.step),
    }
    return case, state, computed


def row_of(case, state, start):
    means = train_state.window_means(state)
    published = {term: means[ours] for term, ours in TERMS.items()} | {"recon": means["recon"]}
    adam = adam_of(state.opt_state)
    return {
        "train_bpd": sum(published.values()),
        **{f"train_bpd_{term}": value for term, value in published.items()},
        "delta_norm": norms(case, minus(state.params, start)),
        "params_norm": norms(case, state.params),
        "ema_norm": norms(case, state.ema),
        "mu_norm": norms(case, adam.mu),
        "nu_norm": norms(case, adam.nu),
    }


def without_null_leaves(case, name, values):
    """Leaves whose true gradient is zero hold rounding only, which Adam scales up to its step."""
    values = np.asarray(values)
    if name.endswith("slice16"):
        return values[~case.null_grad]
    return values[:, ~case.null_grad] if name.endswith("_norm") else values


def largest(case):
    """The largest magnitude of a parameter."""
    return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(cases.params(case)))


def rounding_of_decoder(case):
    """Change of the mean reconstruction, bits per dim, from one float32 rounding of each pixel.

    A pixel's log-probability changes by about 1 / sigma a unit, independently of the others.
    """
    per_unit = np.exp(-case.model["gamma_min"] / 2) / np.log(2)
    pixels = case.dims * case.inputs["images"].shape[1]
    return np.finfo(np.float32).eps * per_unit / np.sqrt(pixels)


def check(case, dtype, computed):
    """Compares what was computed with the record, leaf by leaf where it has leaves."""
    for name in sorted(computed):
        actual = without_null_leaves(case, name, computed[name])
        expected = without_null_leaves(case, name, case.f64[name])
        error, scale = cases.difference(actual, expected, f"{case.name} {name}")
        if dtype == "float64":
            # The average has moved by 1e-9 only, next to much larger parameters.
            bound = cases.STORED_ROUNDING * scale + 2 * np.finfo(np.float64).eps * largest(case)
        else:
            tol = float(case.tol[name]) if name in case.tol else 0.0
            bound = 4 * tol + 4 * np.finfo(np.float32).eps * scale
            if name.endswith("recon"):
                bound += rounding_of_decoder(case)
        assert error <= bound, f"{case.name} {name}: off by {error:.3g}, allowed {bound:.3g}"


@pytest.mark.full_cases(
    "train_VP(_fast)?", "(train_VP_accum2|ckpt_P32c)", "train_VP_fast_decay_clip"
)
@pytest.mark.parametrize("name", [*cases.of_kind("train"), *cases.of_kind("ckpt")])
def test_published_run_in_float64(name, float64):
    case, _, computed = trained(name, float64)
    elsewhere = {each for each in case.f64 if each.startswith("ema_eval")}
    assert set(case.f64) == set(computed) | elsewhere
    check(case, float64, computed)


FULL = (
    "train_SP_2nd",
    "train_VP",
    "train_VP_accum2",
    "train_VP_fast",
    "train_VP_fast_decay_clip",
)


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if name in FULL else ())
        for name in [*cases.of_kind("train"), *cases.of_kind("ckpt")]
    ],
)
def test_published_run_in_float32(name):
    case, _, computed = trained(name, "float32")
    check(case, "float32", computed)


@pytest.mark.parametrize("name", cases.of_kind("ckpt"))
def test_evaluation_of_the_average(name, float64):
    case, state, _ = trained(name, float64)
    model = official_config.model_of(case.model)
    first = dataclasses.replace(model, loss=first_order.FirstOrder())
    batch = batch_of(case, case.config["steps"] - 1, float64)
    _, parts = jax.jit(loss_fn_of(first), static_argnums=3)(state.ema, batch, None, 0)
    terms = {term: np.mean(parts[ours]) for term, ours in TERMS.items()}
    terms["recon"] = np.mean(parts["recon"])
    computed = {f"ema_eval_bpd_{term}": value for term, value in terms.items()}
    check(case, float64, computed | {"ema_eval_bpd": sum(terms.values())})


@pytest.mark.parametrize("name", cases.of_kind("ckpt"))
def test_published_checkpoint_is_the_state_we_arrive_at(name, tmp_path):
    case, state, _ = trained(name, "float32")
    saved = official.load_official_checkpoint(cases.unpack_checkpoint(case, tmp_path))
    adam = adam_of(state.opt_state)
    assert saved["step"] == int(state.step)
    assert saved["opt_state"]["count"] == int(adam.count)
    pairs = {
        "delta": (state.params, saved["params"]),
        "ema_delta": (state.ema, saved["ema_params"]),
        "mu": (adam.mu, saved["opt_state"]["mu"]),
        "nu": (adam.nu, saved["opt_state"]["nu"]),
    }
    for tree, (ours, theirs) in pairs.items():
        off = without_null_leaves(case, "slice16", slices(case, minus(ours, theirs)))
        scale = np.abs(case.f64[f"{tree}_slice16"]).max()
        bound = 8 * float(case.tol[f"{tree}_slice16"]) + 1e-5 * scale
        if "delta" in tree:  # of parameters rounded to float32
            bound += 4 * np.finfo(np.float32).eps * largest(case)
        assert np.abs(off).max() <= bound, (tree, np.abs(off).max(), bound)
