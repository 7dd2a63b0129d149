"""VDM: schedules, losses, gradients, network and checkpoints of google-research/vdm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

from idode_gin import numerics, ode
from idode_gin.encoding import Encoding
from idode_gin.interop import convert, official, vdm
from idode_gin.losses import base as losses
from idode_gin.losses.first_order import FirstOrder
from idode_gin.models import DiffusionODE, Draws
from idode_gin.networks.unet import UNet
from idode_gin.parameterizations.noise import Noise
from idode_gin.runs import run_inputs
from idode_gin.schedules.time.base import ENDS, INTERIOR, PARAMS
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.time_samplers.discrete_steps import DiscreteSteps
from idode_gin.time_samplers.uniform import Uniform

from . import cases, vdm_params

TIMES = {"learnable_scalar": LearnedLinear(), "learnable_nnet": Monotone()}
SAMPLERS = {0: Uniform(), 8: DiscreteSteps(steps=8)}


@functools.cache
def model_of(name):
    """Our model of a case."""
    config = cases.load(name).model
    return DiffusionODE(
        network=UNet(
            channels=config["sm_n_embd"],
            levels=config["sm_n_layer"],
            attention_everywhere=config["with_attention"],
        ),
        schedule=VariancePreserving(),
        time=TIMES[config["gamma_type"]],
        parameterization=Noise(),
        time_sampler=Uniform(),
        loss=FirstOrder(),
        encoding=Encoding(levels=config["vocab_size"]),
        image_shape=(*cases.load(name).config["HW"], 3),
    )


def published(case, dtype):
    """The case's parameters under their published names, nested."""
    flat = vdm_params.params(case.config["shapes"], case.config["seed"])
    nested = {tuple(name.split("/")): leaf.astype(dtype) for name, leaf in flat.items()}
    return traverse_util.unflatten_dict(nested)


def ours(tree):
    """The parameters in our tree; differentiable in those of gamma(t)."""
    network, gamma = vdm.split(traverse_util.flatten_dict(tree))
    return {**official.from_official(network), **vdm.time_params(gamma)}


def batch_and_draws(case, dtype):
    given = {name: jnp.asarray(case.inputs[name], dtype) for name in ("t", "eps", "eps_0")}
    probes = jnp.zeros((0, *given["eps"].shape), dtype)
    draws = Draws(
        u=given["t"],
        loss=losses.LossDraws(noise=given["eps"], probes=probes),
        reconstruction=given["eps_0"],
        dropout=None,
    )
    conditioning = jnp.asarray(case.inputs["conditioning"], dtype)[:, None]
    return {"image": jnp.asarray(case.inputs["images"]), "conditioning": conditioning}, draws


def published_loss(model, sampler, tree, batch, draws):
    """VDM's loss in bits per dim, through which its code trains everything; and its three terms."""
    params = ours(tree)
    field, here = model.field(params, batch["conditioning"]), model.at(params)
    f = model.encoding.encode(batch["image"])
    sampled = sampler.gamma_and_density(draws.u, here.time, jnp.ones_like)
    terms = {
        "loss_recon": losses.reconstruction_term(here.end, batch["image"], draws.reconstruction),
        "loss_klz": losses.prior_term(field, here.time, f),
        "loss_diff": model.loss(field, f, *sampled, draws.loss).diffusion,
    }
    return jnp.mean(numerics.nats_to_bpd(sum(terms.values()), f[0].size)), terms


def gradient_values(case, gradient, suffix):
    """What is recorded of a gradient, in the published tree."""
    leaves = {"/".join(path): leaf for path, leaf in traverse_util.flatten_dict(gradient).items()}
    network = [leaves[name] for name in case.keys]
    found = {
        f"grad{suffix}.{name.replace('/', '.')}": leaf
        for name, leaf in leaves.items()
        if name.startswith("gamma/")
    }
    found[f"grad_norms{suffix}"] = jnp.stack([jnp.sqrt(jnp.sum(leaf**2)) for leaf in network])
    found[f"grad_slices{suffix}"] = np.stack([cases.slice16(leaf) for leaf in network])
    return found


def assert_recorded(case, found):
    """Compare arrays with the record; in float32 also allow what rounding does in our formulas.

    The prior term sums 1 - 1 + small over pixels. A gradient through gamma, whose seventh digit is
    rounded, is uncertain in its fourth, as Fourier features make 2^7 turns.
    """
    for name, value in found.items():
        scale = float(np.max(np.abs(case.f64[name])))
        slack = 1e-3 * scale if ".gamma." in name else SLACK.get(name, 0.0)
        if name.startswith("bpd"):  # a mean, whose errors may cancel in the record
            slack = case.tol[name.replace("bpd", "loss_diff")] / (case.dims * np.log(2))
        cases.assert_close(case, name, value, slack=slack)


SLACK = {
    "gamma": 4e-6,
    "dgamma": 4e-6,
    "g_t": 4e-6,
    "var_0": 1e-8,
    "var_1": 1e-7,
    "loss_klz": 192 * np.finfo(np.float32).eps,
}

FULL = pytest.mark.full
IN_FULL_RUN = [
    pytest.param(name, precision, steps, marks=FULL)
    for name in cases.of_kind("vdm")
    for precision in ("float64", "float32")
    for steps in SAMPLERS
    if (name, precision, steps) != ("vdm_linear", "float64", 8)
]


@pytest.mark.parametrize("name", cases.of_kind("vdm"))
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_gamma_and_its_derivative(name, precision):
    with cases.precision(precision):
        case = cases.load(name)
        _, gamma = vdm.split(traverse_util.flatten_dict(published(case, precision)))
        here, t = model_of(name).at(vdm.time_params(gamma)), jnp.asarray(case.inputs["grid"])
        t = t.astype(precision)
        found = {"gamma": here.time.gamma(t), "dgamma": here.time.dgamma(t)}
        found["g_t"] = here.time.gamma(jnp.asarray(case.inputs["t"], precision))
        ends = {"var_0": here.time.gamma_min, "var_1": here.time.gamma_max}
        for key, end in ends.items():
            found[key] = here.schedule.sigma(jnp.asarray(end, precision)) ** 2
        assert_recorded(case, found)


@pytest.mark.parametrize(
    ("name", "precision", "steps"), [("vdm_linear", "float64", 8), *IN_FULL_RUN]
)
def test_losses_and_gradients(name, precision, steps):
    """In continuous time, and for chains of eight steps."""
    with cases.precision(precision):
        case, model = cases.load(name), model_of(name)
        batch, draws = batch_and_draws(case, precision)

        @jax.jit
        def both(tree):
            def loss(tree):
                return published_loss(model, SAMPLERS[steps], tree, batch, draws)

            return jax.value_and_grad(loss, has_aux=True)(tree)

        (bpd, terms), gradient = both(published(case, precision))
        suffix = "_T" if steps else ""
        found = {f"bpd{suffix}": bpd, f"loss_diff{suffix}": terms["loss_diff"]}
        found |= {key: terms[key] for key in ("loss_recon", "loss_klz")}
        assert_recorded(case, found | gradient_values(case, gradient, suffix))


def test_our_objective_trains_the_interior_by_the_variance():
    """The network and the ends by VDM's loss; the interior by its square, with the ends held."""
    with cases.precision("float64"):
        case, model = cases.load("vdm_monotone"), model_of("vdm_monotone")
        batch, draws = batch_and_draws(case, "float64")
        tree = published(case, "float64")
        objective = jax.jit(jax.value_and_grad(model.objective, has_aux=True))
        (bpd, parts), gradient = objective(ours(tree), batch, draws)
        of_time = gradient.pop(PARAMS)
        ends = of_time[ENDS]["gamma_min"] + of_time[ENDS]["gamma_max"]
        found = {"bpd": bpd, "grad.gamma.l1.bias": ends[None]}
        nats = case.dims * np.log(2)
        for key, part in {"recon": "reconstruction", "klz": "prior", "diff": "diffusion"}.items():
            found[f"loss_{key}"] = parts[part] * nats
        leaves = traverse_util.flatten_dict(official.to_official(gradient), sep="/")
        found |= gradient_values(case, traverse_util.unflatten_dict(leaves, sep="/"), "")
        assert_recorded(case, found)

        _, gamma = vdm.split(traverse_util.flatten_dict(tree))
        _, pull = jax.vjp(lambda gamma: vdm.time_params(gamma)[PARAMS][INTERIOR], gamma)
        for path, leaf in pull(of_time[INTERIOR])[0].items():
            key = f"grad_square.gamma.{'.'.join(path)}"
            if path == ("l1", "bias"):  # moves the ends alone
                assert abs(leaf[0]) < 1e-9
            else:
                cases.assert_close(case, key, leaf)


@pytest.mark.parametrize("name", cases.of_kind("vdm"))
@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=FULL)])
def test_the_network(name, precision):
    with cases.precision(precision):
        case, model = cases.load(name), model_of(name)
        params = ours(published(case, precision))
        batch, draws = batch_and_draws(case, precision)
        here = model.at(params)  # as evaluation does: its time input is of the initial range
        field, gamma = here.field(params, batch["conditioning"]), here.time.gamma(draws.u)
        z = ode.noised(model.schedule, model.encoding.encode(batch["image"]), gamma, draws.loss[0])
        assert_recorded(case, {"eps_hat": jax.jit(field.noise_hat)(z, gamma)})


def checkpoint_of(tree, ema, step=70):
    """The content of a checkpoint: optax's AdamW is a chain of three, of which one has moments."""
    moments = jax.tree.map(lambda leaf: np.full_like(leaf, 0.25), tree)
    adam = {"count": np.asarray(step, np.int32), "mu": moments, "nu": moments}
    state = {"0": adam, "1": {"inner_state": {}}, "2": {}}
    return {"step": step, "params": tree, "ema_params": ema, "opt_state": state}


def converted(content, folder):
    file = folder / "checkpoints-0" / "ckpt-7.flax"
    file.parent.mkdir()
    file.write_bytes(serialization.msgpack_serialize(content))
    return convert.main(["--source", str(file.parent), "--output", str(folder / "ours")])


@pytest.mark.parametrize(
    "name", ["vdm_linear", pytest.param("vdm_monotone", marks=pytest.mark.full)]
)
def test_a_checkpoint_has_the_recorded_bound(name, tmp_path):
    """Its moving average; its last parameters are others."""
    case, model = cases.load(name), model_of(name)
    tree = published(case, "float32")
    others = jax.tree.map(lambda leaf: 2 * leaf, tree)
    assert converted(checkpoint_of(others, tree), tmp_path) == 0
    assert (tmp_path / "ours" / "checkpoint_70").is_dir()
    last, ema = (
        run_inputs.load_params(model, model.image_shape, str(tmp_path / "ours"), use_ema).params
        for use_ema in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, last, ours(others))
    batch, draws = batch_and_draws(case, "float32")
    _, parts = jax.jit(model.objective)(ema, batch, draws)
    assert_recorded(case, {"loss_diff": parts["diffusion"] * np.float32(case.dims * np.log(2))})
    cases.assert_close(case, "bpd", jnp.mean(parts["bpd"]))


def test_moments_of_gamma_are_zeros(tmp_path):
    tree = published(cases.load("vdm_monotone"), "float32")
    (tmp_path / "ckpt-1.flax").write_bytes(serialization.to_bytes(checkpoint_of(tree, tree)))
    found = official.load_official_checkpoint(tmp_path)
    for name in ("mu", "nu"):
        moments = dict(found["opt_state"][name])
        of_time = moments.pop(PARAMS)
        assert jax.tree.map(np.shape, of_time) == jax.tree.map(np.shape, found["params"][PARAMS])
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_time))
        assert all(np.all(leaf == 0.25) for leaf in jax.tree.leaves(moments))


DAMAGE = {
    "a leaf is missing": (lambda gamma: gamma.pop("b"), "w [1]"),
    "another leaf": (lambda gamma: gamma.update(c=np.ones(1, np.float32)), "c [1]"),
    "another shape": (lambda gamma: gamma.update(w=np.ones(2, np.float32)), "w [2]"),
    "no slope": (lambda gamma: gamma.update(w=np.zeros(1, np.float32)), "must increase"),
    "not a number": (lambda gamma: gamma.update(w=np.array([np.nan], np.float32)), "a NaN"),
    "a scalar": (lambda gamma: gamma.update(w=np.float32(3)), "gamma/w"),
    "none": (lambda gamma: gamma.clear(), "of one gamma(t)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", ["params", "ema_params"])
def test_a_damaged_gamma_is_refused_in_one_line(damage, part, tmp_path, capsys):
    trees = {name: published(cases.load("vdm_linear"), "float32") for name in ("a", "b")}
    content = checkpoint_of(*trees.values())
    change, words = DAMAGE[damage]
    change(content[part]["gamma"])
    assert converted(content, tmp_path) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ")
    assert "\n" not in errors
    assert words in errors
    assert not (tmp_path / "ours").exists()


def test_a_monotone_gamma_without_a_linear_part_is_refused():
    _, gamma = vdm.split(traverse_util.flatten_dict(published(cases.load("vdm_monotone"), "f4")))
    gamma[("l1", "kernel")] = np.zeros((1, 1), np.float32)
    with pytest.raises(ValueError, match="have a linear part"):
        vdm.time_params(gamma)
