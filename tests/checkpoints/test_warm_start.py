"""Starting from another run: which leaf becomes what, and what an optimizer makes of it."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from idode_gin.checkpoints import restoring as checkpoint_restoring
from idode_gin.checkpoints import saving, stacked_leaves, warm_start
from idode_gin.devices import partitioning
from idode_gin.networks import stacking
from idode_gin.reports import fingerprints
from idode_gin.training import optimizers, train_state

RESTORE = {"params": "restore", "ema": "restore", "optimizer": "restore"}
SAVED = {
    "params/a": (2,),
    "params/b": (3, 4),
    "ema/a": (2,),
    "ema/b": (3, 4),
    "optimizer/mu/a": (2,),
}


def plan(wanted, rules=None, *, saved=SAVED, **defaults):
    return warm_start.plan(saved, wanted, RESTORE | defaults, warm_start.parse(rules or {}))


def test_the_same_leaves_need_no_rule():
    found = plan(SAVED)
    assert found.problems == {}
    assert found.dropped == []
    assert all(
        fate == warm_start.Fate(action="restore", source=n) for n, fate in found.fates.items()
    )


def test_every_leaf_that_no_rule_covers_is_named():
    wanted = {**SAVED, "params/b": (3, 5), "params/new": (1,)}
    del wanted["ema/a"]
    found = plan(wanted)
    assert found.problems == {
        "params/b": "shape [3, 4] in the checkpoint, [3, 5] here",
        "params/new": "missing from the checkpoint, which has no params/new",
        "ema/a": "in the checkpoint, unknown to this run",
    }
    with pytest.raises(ValueError, match="3 leaves are covered by no rule") as error:
        found.check("run/checkpoint_2")
    for name, why in found.problems.items():
        assert f"\n  {name}: {why}" in str(error.value)
    found.fates.clear()
    covered = plan(wanted, {r"params/(b|new)": "reset", r"ema/a": "drop"})
    assert covered.problems == {}
    assert covered.resets("params") == ["params/b", "params/new"]
    assert covered.dropped == ["ema/a", "params/b"]
    covered.check("run/checkpoint_2")


def test_padding_and_names():
    wanted = {"params/c": (2,), "params/b": (3, 6), "ema/b": (3, 2)}
    rules = {
        r"params/c": "restore from params/a",
        r"(.*)/b": "pad",
        r".*/a": "drop",
    }
    found = plan(wanted, rules)
    assert found.fates["params/c"] == warm_start.Fate(action="restore", source="params/a")
    assert found.fates["params/b"] == warm_start.Fate(action="pad", source="params/b")
    assert found.problems == {
        "ema/b": "shape [3, 4] in the checkpoint, [3, 2] here: it cannot be padded"
    }
    assert "params/c from params/a" in found.report()
    swapped = plan(
        {"params/a": (2,)}, {r"(params)/a": r"restore from optimizer/mu/a", ".*": "drop"}
    )
    assert swapped.fates["params/a"].source == "optimizer/mu/a"
    groups = plan({"ema/old_a": (2,)}, {r"(\w+)/old_(\w)": r"restore from \1/\2", ".*": "drop"})
    assert groups.fates["ema/old_a"].source == "ema/a"


def test_the_first_rule_holds_and_a_part_that_is_reset_needs_none():
    found = plan(
        {"params/a": (2,)}, {".*/a": "reset", "params/.*": "drop"}, ema="reset", optimizer="reset"
    )
    assert found.fates == {"params/a": warm_start.Fate(action="reset")}
    assert found.problems == {}
    kept = plan(SAVED, {"optimizer/mu/a": "restore"}, optimizer="reset")
    assert kept.fates["optimizer/mu/a"].action == "restore"


@pytest.mark.parametrize("rules", [{"params/z": "reset"}, {"dense": "reset"}, {"params/a": "drop"}])
def test_a_rule_that_decides_nothing_is_an_error(rules):
    with pytest.raises(ValueError, match=re.escape(f"{next(iter(rules))!r} applies to none")):
        plan(SAVED, rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"a": "resett"}, "Did you mean 'reset'"),
        ({"a": "drop from b"}, "may say"),
        ({"(a": "reset"}, "must map regular expressions"),
        ({"a": r"restore from \1"}, "must map regular expressions"),
    ],
)
def test_rules_that_are_none(rules, message):
    with pytest.raises(ValueError, match=message):
        saving.RestoreCheckpointConfig(rules=rules)


def test_configurations_that_are_refused():
    with pytest.raises(ValueError, match=r"`step` must be one of.* Did you mean 'restore'"):
        saving.RestoreCheckpointConfig(step="restored")
    with pytest.raises(ValueError, match="`path` must name .* got an empty string"):
        saving.RestoreCheckpointConfig(path="")
    for changes in ({"step": "reset"}, {"mode": "latest"}, {"rules": {"params/a": "pad"}}):
        with pytest.raises(ValueError, match=rf"{next(iter(changes))!r} apply to .* is None"):
            saving.RestoreCheckpointConfig(**changes)
    with pytest.raises(ValueError, match="Nothing would be restored"):
        saving.RestoreCheckpointConfig(params="reset", ema="reset", optimizer="reset")


# Runs of a network of two leaves.


def optimizer(every=1, **changes):
    fields = {"learning_rate": 0.1, "warmup_steps": 5, "decay_steps": 40}
    return optimizers.AdamW(accumulation_steps=every, **(fields | changes))


def facts(every):
    return {checkpoint_restoring.ACCUMULATION: str(every)}


@functools.cache
def state_of(step, every=1, *, rows=3, dtype=jnp.float32, names=("loss",)):
    """As after `step` steps of training, with every leaf another one."""
    params = {
        "dense_0": {"kernel": jax.random.normal(jax.random.key(step), (rows, 2), dtype)},
        "out": {"bias": jnp.full((2,), 1.0 + step, dtype)},
    }
    transformation = optimizer(every).build()
    state = train_state.create(params, transformation, names)
    opt_state = state.opt_state
    update = jax.jit(transformation.update)
    for number in range(step):
        gradients = jax.tree.map(lambda leaf, n=number: jnp.sin(leaf + n), params)
        _, opt_state = update(gradients, opt_state, params)
    return dataclasses.replace(
        state,
        step=jnp.int32(step),
        ema=jax.tree.map(lambda leaf: leaf + 1, params),
        opt_state=opt_state,
        window={name: each + step for name, each in state.window.items()},
    )


def save(directory, state, every=1):
    with saving.Checkpoints(directory, saving.CheckpointConfig(), facts(every)) as saved:
        saved.save(state)
    return directory


def restore(directory, fresh, every=1, **config):
    restoring = saving.RestoreCheckpointConfig(**config)
    config = saving.CheckpointConfig(restore=restoring)
    sharding = partitioning.PjitPartitioner().state_sharding(fresh)
    with saving.Checkpoints(directory, config, facts(every)) as saved:
        abstract = partitioning.abstract(fresh, sharding)
        return saved.restore(abstract, lambda: fresh, optimizer(every).build().init)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def schedule_count(opt_state):
    (found,) = [
        node.count
        for node in jax.tree.leaves(
            opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState)
        )
        if isinstance(node, optax.ScaleByScheduleState)
    ]
    return int(found)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(tmp_path_factory.mktemp("source"), state_of(6))


def test_all_of_it(source, tmp_path):
    state, restored = restore(tmp_path / "own", state_of(0), path=str(source))
    assert_same(state, state_of(6))
    assert restored.path == source / "checkpoint_6"
    assert restored.report.startswith("  params     2 leaves restored")
    assert "optimizer/0/mu/dense_0/kernel" in restored.report


def test_the_optimizer_is_reset_and_steps_are_counted_from_zero(source, tmp_path):
    fresh = state_of(0)
    state, _ = restore(tmp_path, fresh, path=str(source), optimizer="reset", step="reset")
    assert_same(state.params, state_of(6).params)
    assert_same(state.ema, state_of(6).ema)
    assert_same(state.opt_state, fresh.opt_state)
    assert int(state.step) == 0
    assert float(state.window["count"]) == 0


def test_counters_of_a_reset_optimizer_start_at_zero_without_a_warning(source, tmp_path, caplog):
    state, _ = restore(tmp_path, state_of(0), path=str(source), optimizer="reset")
    assert int(state.step) == 6
    assert float(state.window["count"]) == 0
    assert "another window" not in caplog.text


def test_an_average_that_is_reset_starts_from_the_parameters(source, tmp_path):
    state, _ = restore(tmp_path, state_of(0), path=str(source), ema="reset")
    assert_same(state.ema, state_of(6).params)
    step = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)
    step(state)  # and is a copy, so that both can be donated


def test_parameters_may_be_taken_from_the_average(source, tmp_path):
    rules = {r"params/(.*)": r"restore from ema/\1"}  # nobody needs the checkpoint's `params`
    state, restored = restore(tmp_path, state_of(0), path=str(source), rules=rules)
    assert_same(state.params, state_of(6).ema)
    assert "not used (2)\n  params/dense_0/kernel" in restored.report
    step = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)
    step(state)


def test_new_inputs_change_nothing_at_first(source, tmp_path):
    rules = {r".*/dense_0/kernel": "pad"}
    state, _ = restore(tmp_path, state_of(0, rows=5), path=str(source), rules=rules)
    old = state_of(6)
    inputs = jax.random.normal(jax.random.key(1), (7, 5))
    for tree, before in ((state.params, old.params), (state.ema, old.ema)):
        kernel = before["dense_0"]["kernel"]
        np.testing.assert_allclose(
            inputs @ tree["dense_0"]["kernel"], inputs[:, :3] @ kernel, rtol=1e-6
        )
    mu = state.opt_state[0].mu["dense_0"]["kernel"]
    np.testing.assert_array_equal(mu[:3], old.opt_state[0].mu["dense_0"]["kernel"])
    np.testing.assert_array_equal(mu[3:], 0)
    with pytest.raises(ValueError, match=r"4 leaves are covered by no rule") as error:
        restore(tmp_path / "own", state_of(0, rows=5), path=str(source))
    assert "optimizer/0/nu/dense_0/kernel: shape [3, 2] in the checkpoint, [5, 2] here" in str(
        error.value
    )


def test_leaves_that_are_reset_take_their_average_along(source, tmp_path):
    fresh = state_of(0, rows=5)
    rules = {r".*/dense_0/kernel": "reset"}
    state, _ = restore(tmp_path, fresh, path=str(source), rules=rules)
    assert_same(state.params["dense_0"], fresh.params["dense_0"])
    assert_same(state.ema["dense_0"], fresh.params["dense_0"])
    assert_same(state.params["out"], state_of(6).params["out"])


def test_another_loss_has_other_sums(source, tmp_path):
    state, _ = restore(tmp_path, state_of(0, names=("loss", "second")), path=str(source))
    assert {name: float(each) for name, each in state.window.items()} == {
        "count": 0,
        "loss": 0,
        "second": 0,
        "skipped": 0,
    }
    assert int(state.step) == 6


def test_a_schedule_follows_the_step(source, tmp_path):
    for config, count in (({}, 6), ({"step": "reset"}, 0), ({"optimizer": "reset"}, 6)):
        state, _ = restore(tmp_path, state_of(0), path=str(source), **config)
        assert schedule_count(state.opt_state) == count


def moments(opt_state):
    leaves = dict(fingerprints.paths_and_leaves(opt_state))
    return {
        name.replace("inner_opt_state/", ""): np.asarray(leaf)
        for name, leaf in leaves.items()
        if re.search(r"/(mu|nu)/|0/count", name)
    }


@pytest.mark.parametrize(
    ("before", "after", "is_own"),
    [(1, 2, True), (2, 1, True), (3, 2, True), (2, 1, False), (1, 4, False)],
)
def test_accumulation_keeps_the_moments(tmp_path, before, after, is_own):
    """The next update is what an optimizer with these moments makes of the mean gradient."""
    old = state_of(7, before)
    save(tmp_path / "old", old, before)
    directory, config = (tmp_path / "old", {}) if is_own else (tmp_path, {"path": tmp_path / "old"})
    config = {name: str(each) for name, each in config.items()}
    state, restored = restore(directory, state_of(0, after), after, **config)
    assert_same(state.params, old.params)
    assert int(state.step) == 7
    kept, expected = moments(state.opt_state), moments(old.opt_state)
    assert len(kept) == 5
    assert kept.keys() == expected.keys()
    assert all(np.array_equal(kept[name], expected[name]) for name in kept)
    assert "7" in restored.report

    now, transformation = optimizer(after), optimizer(after).build()
    gradients = [
        jax.tree.map(lambda leaf, n=n: jnp.cos(leaf) + n, old.params) for n in range(after)
    ]
    opt_state = state.opt_state
    make_update = jax.jit(transformation.update)
    for each in gradients:
        update, opt_state = make_update(each, opt_state, state.params)
    mean = jax.tree.map(lambda *each: sum(each) / after, *gradients)
    adam = optax.scale_by_adam(now.b1, now.b2, eps=now.eps)
    inner = old.opt_state.inner_opt_state if before > 1 else old.opt_state
    scaled, _ = adam.update(mean, inner[0], old.params)
    rate = float(now.learning_rate_at(7 // after * after + after - 1))
    decay = optimizers.decayed(old.params)
    for (name, found), want, param, decays in zip(
        fingerprints.paths_and_leaves(update),
        jax.tree.leaves(scaled),
        jax.tree.leaves(old.params),
        jax.tree.leaves(decay),
        strict=True,
    ):
        expected = -rate * (want + decays * now.weight_decay * param)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_an_optimizer_that_holds_parameters_is_reset_to_those_restored(source, tmp_path):
    transformation = optax.contrib.schedule_free_sgd(0.1)
    fresh = dataclasses.replace(state_of(0), opt_state=transformation.init(state_of(0).params))
    config = saving.RestoreCheckpointConfig(path=str(source), optimizer="reset")
    sharding = partitioning.PjitPartitioner().state_sharding(fresh)
    saved = saving.Checkpoints(tmp_path, saving.CheckpointConfig(restore=config), {})
    state, _ = saved.restore(
        partitioning.abstract(fresh, sharding), lambda: fresh, transformation.init
    )
    assert_same(state.opt_state.z, state_of(6).params)


def test_narrower_numbers(source, tmp_path):
    fresh = state_of(0, dtype=jnp.bfloat16)
    state, _ = restore(tmp_path, fresh, path=str(source))
    expected = jax.tree.map(lambda leaf, want: leaf.astype(want.dtype), state_of(6), fresh)
    assert state.params["out"]["bias"].dtype == jnp.bfloat16
    assert_same(state, expected)


# Equal blocks: one tree each, or one tree with the blocks along a first axis.


def blocks_of(step, form):
    """A state like `state_of`, of a network with 12 blocks, in the form asked for."""
    blocks = [{"kernel": jax.random.normal(jax.random.key(n), (2, 4))} for n in range(12)]
    params = {
        "out": {"bias": jnp.arange(2.0)},
        **{f"up_{n}": each for n, each in enumerate(blocks)},
    }
    transformation = optimizer().build()
    if form == "stacked":
        params = stacking.stacked(params)
    state = train_state.create(params, transformation, ("loss",))
    opt_state = state.opt_state
    for _ in range(step):
        _, opt_state = transformation.update(jax.tree.map(jnp.sin, params), opt_state, params)
    ema = jax.tree.map(lambda leaf: leaf + 1, params)
    return dataclasses.replace(state, step=jnp.int32(step), ema=ema, opt_state=opt_state)


FORMS = [("unrolled", "stacked"), ("stacked", "unrolled")]


@pytest.mark.parametrize(("before", "after"), FORMS)
def test_blocks_that_are_stacked_and_those_that_are_not_become_each_other(tmp_path, before, after):
    source = save(tmp_path / "source", blocks_of(4, before))
    state, restored = restore(tmp_path / "own", blocks_of(0, after), path=str(source))
    expected = blocks_of(4, after)
    for name in ("params", "ema", "opt_state"):  # element by element, an optimizer does not see it
        assert_same(getattr(state, name), getattr(expected, name))
    assert "missing" not in restored.report
    assert "0 leaves of the checkpoint not used" in restored.report
    jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)(state)


def test_a_block_can_be_reset_and_the_others_are_still_taken(tmp_path):
    source = save(tmp_path / "source", blocks_of(4, "stacked"))
    rules = {".*/up_1/kernel": "reset"}
    state, _ = restore(tmp_path / "own", blocks_of(0, "unrolled"), path=str(source), rules=rules)
    assert_same(state.params["up_2"], blocks_of(4, "unrolled").params["up_2"])
    assert_same(state.opt_state[0].mu["up_1"]["kernel"], jnp.zeros((2, 4)))


A, B = (2, 4), (3, 4)


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ({"up_0/a": A, "up_1/a": A}, {"up/a": (3, *A)}),  # another number of blocks
        ({"up_0/a": A, "up_2/a": A}, {"up/a": (2, *A)}),  # one is missing
        ({"up_0/a": A, "up_1/a": B}, {"up/a": (2, *A)}),  # they are not equal
        ({"up/a": (2, *A)}, {"up_0/a": A, "up_1/a": A, "up_2/a": A}),
        ({"up/a": (2, *A)}, {"up_1/a": A, "up_2/a": A}),
        ({"up/a": (2, *A), "up_1/a": A}, {"up_0/a": A, "up_1/a": A}),
    ],
)
def test_blocks_that_do_not_fit_are_named(saved, wanted):
    saved, wanted = ({f"params/{n}": each for n, each in side.items()} for side in (saved, wanted))
    assert stacked_leaves.made(saved, wanted) == {}
    with pytest.raises(ValueError, match="covered by no rule"):
        plan(wanted, saved=saved).check("run/checkpoint_2")


def test_the_shapes_of_leaves_that_are_made():
    saved = {"params/a/up_0/b_1": A, "params/a/up_1/b_1": A, "params/down/c": (2, *B)}
    wanted = {"params/a/up/b_1": (2, *A), "params/down_0/c": B, "params/down_1/c": B}
    found = stacked_leaves.made(saved, wanted)
    assert stacked_leaves.as_if_saved(saved, found) == wanted
