"""Bad steps: judged in the update, skipped without a trace, or stopping the run; replays."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny_runs import rows

from idode_gin import checks
from idode_gin.checkpoints import restoring, saving
from idode_gin.feed import batches
from idode_gin.training import guards, optimizers, replays, train_state, train_step
from idode_gin.training.guards import Guards, LossSpike, Skip
from idode_gin.training.setup import resume_or_begin

KEY = jax.random.key(5)
SKIP = Guards(non_finite=Skip(max_consecutive=2, max_total=3))
BINS = train_step.GammaBins(number=4, low=-8.0, high=5.0)


def poisonable(params, batch, key, global_batch_size):
    """Return the tiny model's loss times `batch["factor"]`, with one number per image."""
    loss, parts = tiny.model().loss_fn(params, batch, key, global_batch_size)
    factor = batch["factor"][0]
    scaled = {name: each * factor for name, each in parts.items()}
    return loss * factor, scaled | {"gamma": parts["gamma"]}


def make(rules, *, optimizer=None, **changes):
    """Return the initial state and the jitted update, not donated so that tests compare states."""
    optimizer = optimizer or optimizers.AdamW(learning_rate=1e-2, warmup_steps=0)
    params = tiny.model().init(jax.random.key(0), tiny.SHAPE)
    names = train_step.metric_names(poisonable, params, batch_of(0), KEY)
    state = train_state.create(params, optimizer.build(), names, BINS.number)
    numbers = {"ema_rate": 0.75, "log_period": 8, "update_period": optimizer.accumulation_steps}
    config = train_step.UpdateConfig(rules=rules, gamma_bins=BINS, **(numbers | changes))
    update = train_step.make_train_step(poisonable, optimizer.build(), KEY, config)
    return state, jax.jit(update)


def batch_of(step, factor=1.0):
    batch = batches.train_batch(tiny.split(), tiny.config(8), step)
    arrays = {name: jnp.asarray(array) for name, array in batch.items()}
    return arrays | {"factor": jnp.full(8, factor)}


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def moved_on(state):
    """Return the state after a step without an update."""
    return dataclasses.replace(state, step=state.step + 1)


@pytest.mark.full_cases("1-.*")
@pytest.mark.parametrize("factor", [np.nan, np.inf, 50.0])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_is_a_step_that_never_was(factor, accumulation):
    """Bit for bit: parameters, average, optimizer; and the window except its count of skips."""
    rules = Guards(non_finite=Skip(), loss_spike=LossSpike(factor=5.0, warmup_steps=2, then=Skip()))
    optimizer = optimizers.AdamW(
        learning_rate=1e-2, warmup_steps=0, accumulation_steps=accumulation
    )
    state, update = make(rules, optimizer=optimizer)
    absent = state
    for step in range(6):
        is_bad = step == 3
        state, health = update(state, batch_of(step, factor if is_bad else 1.0))
        verdict = guards.SPIKE if factor == 50.0 else guards.NON_FINITE
        assert int(health["verdict"]) == (verdict if is_bad else guards.GOOD)
        if is_bad:
            absent = moved_on(absent)
            absent.guard["non_finite_total"] += 1  # the phase of the average depends on it
        else:
            absent, _ = update(absent, batch_of(step))
        for part in ("params", "ema", "opt_state"):
            assert bits(getattr(state, part)) == bits(getattr(absent, part)), (step, part)
        ours, theirs = dict(state.window), dict(absent.window)
        assert float(ours.pop("skipped")) == (step >= 3)
        assert float(theirs.pop("skipped")) == 0
        assert bits(ours) == bits(theirs)
    assert float(state.window["count"]) == 5
    assert int(state.step) == 6
    assert train_state.window_means(state)["skipped"] == 1


def test_the_average_moves_with_the_parameters_after_a_skipped_step():
    """With accumulation over two steps, a skipped first half shifts the pairs by one."""
    optimizer = optimizers.AdamW(learning_rate=1e-2, warmup_steps=0, accumulation_steps=2)
    state, update = make(SKIP, optimizer=optimizer)
    for step, factor in enumerate([np.nan, 1.0, 1.0, 1.0, 1.0]):
        before = state
        state, _ = update(state, batch_of(step, factor))
        has_moved = bits(before.params) != bits(state.params)
        assert has_moved == (step in (2, 4))
        assert (bits(before.ema) != bits(state.ema)) == has_moved


def test_counts_are_in_a_row_and_in_all():
    state, update = make(SKIP)
    seen = []
    for step, factor in enumerate([np.nan, np.nan, 1.0, np.inf]):
        state, health = update(state, batch_of(step, factor))
        seen.append((int(health["run"]), int(health["total"])))
    assert seen == [(1, 1), (2, 2), (0, 2), (1, 3)]
    assert int(guards.num_bad(state.guard)) == 3


def test_a_good_step_alone_resets_the_counts_in_a_row():
    """Kinds are counted apart; one bad step of another kind resets nothing."""
    rules = Guards(non_finite=Skip(), loss_spike=LossSpike(factor=2.0, warmup_steps=1, then=Skip()))
    state, seen = guards.fresh(), []
    for loss in (1.0, np.nan, 9.0, np.nan, 9.0, 1.0, 9.0, np.nan):
        _, state, health = guards.judge(rules, state, jnp.asarray(loss), jnp.ones(()))
        names = ("non_finite_run", "spike_run", "non_finite_total", "spike_total")
        seen.append(tuple(int(state[name]) for name in names))
        if health["verdict"] != guards.GOOD:
            kind = "spike" if health["verdict"] == guards.SPIKE else "non_finite"
            assert int(health["run"]) == int(state[f"{kind}_run"])
            assert int(health["total"]) == int(state[f"{kind}_total"])
    nothing, both = (0, 0, 0, 0), (2, 2, 2, 2)
    assert seen[:5] == [nothing, (1, 0, 1, 0), (1, 1, 1, 1), (2, 1, 2, 1), both]
    assert seen[5:] == [(0, 0, 2, 2), (0, 1, 2, 3), (1, 1, 3, 3)]


def test_stop_does_not_change_the_update():
    """The update neither skips nor selects; `Watch` applies the rule."""
    state, update = make(guards.STOP)
    state, health = update(state, batch_of(0, np.nan))
    assert int(health["verdict"]) == guards.NON_FINITE
    assert np.isnan(health["param_norm"])
    assert float(state.window["skipped"]) == 0


def running_mean(losses, rate):
    mean = 0.0
    for number, loss in enumerate(losses, start=1):
        mean += max(1 / number, 1 - rate) * (loss - mean)
    return mean


@pytest.mark.parametrize("rate", [0.5, 0.99])
def test_the_running_mean_is_over_steps_that_were_no_spike(rate):
    rules = Guards(loss_spike=LossSpike(factor=4.0, rate=rate, warmup_steps=3, then=Skip()))
    state, found = guards.fresh(), []
    judge = jax.jit(lambda state, loss: guards.judge(rules, state, loss, jnp.ones(())))
    losses = [2.0, np.nan, 40.0, np.inf, 3.0, 70.0, 4.0, 17.0, 100.0, 3.0]
    for loss in losses:
        skip, state, health = judge(state, jnp.asarray(loss))
        found.append((bool(skip), float(health["loss_mean"])))
    # 40 comes in the warm-up, which steps that are not finite do not shorten; 70 and 100 are more
    # than 4 means, 17 is less than 4 * 8.
    spikes = [each[0] for each in found]
    accepted: list[float] = []
    for loss, (is_spike, mean) in zip(losses, found, strict=True):
        np.testing.assert_allclose(mean, running_mean(accepted, rate), rtol=1e-6)
        assert is_spike == (len(accepted) >= 3 and np.isfinite(loss) and loss > 4 * mean)
        if not is_spike and np.isfinite(loss):
            accepted.append(loss)
    assert [loss for loss, is_spike in zip(losses, spikes, strict=True) if is_spike] == [70, 100]


def test_a_mean_that_is_not_positive_calls_nothing_a_spike():
    rules = Guards(loss_spike=LossSpike(factor=2.0, warmup_steps=1, then=Skip()))
    state = guards.fresh()
    for loss in (-1.0, 5.0):
        skip, state, _ = guards.judge(rules, state, jnp.asarray(loss), jnp.ones(()))
        assert not skip


def health_of(verdict, run=1, total=1, **values):
    values = {"loss": 9.0, "grad_norm": 1.0, "param_norm": 1.0, "loss_mean": 2.0} | values
    values |= {"verdict": verdict, "run": run, "total": total}
    return {name: jnp.asarray(each) for name, each in values.items()}


@pytest.mark.parametrize(
    ("run", "total", "limit"), [(3, 3, "max_consecutive"), (1, 4, "max_total")]
)
def test_too_many_in_a_row_or_in_all_stop_the_run(run, total, limit):
    said = []
    watch = guards.Watch(SKIP, look_ahead=0, say=said.append)
    watch.push(1, health_of(guards.NON_FINITE, 2, 3, loss=np.nan))
    assert "Step 1 is not finite: loss nan" in said[0]
    assert "Skipped: 2 in a row, 3 in all" in said[0]
    assert watch.bad_step is None
    with pytest.raises(checks.NonFiniteError, match=rf"Step 2 .*skipped already \(Skip\.{limit}"):
        watch.push(2, health_of(guards.NON_FINITE, run, total, loss=np.nan))
    assert (watch.bad_step, watch.would_skip) == (2, False)  # the rule is `Skip` already


def test_parameters_that_are_not_finite_stop_the_run_under_any_rule():
    watch = guards.Watch(SKIP, look_ahead=0)
    with pytest.raises(checks.NonFiniteError, match="norm of the parameters inf"):
        watch.push(1, health_of(guards.GOOD, param_norm=np.inf))
    assert (watch.bad_step, watch.would_skip) == (1, False)


def test_a_spike_stops_with_an_error_of_its_own():
    rules = Guards(non_finite=Skip(), loss_spike=LossSpike(factor=3.0))
    watch = guards.Watch(rules, look_ahead=0)
    with pytest.raises(checks.LossSpikeError, match=r"loss of 9 is more than 3 times.* mean, 2\."):
        watch.push(4, health_of(guards.SPIKE))
    assert (watch.bad_step, watch.would_skip) == (4, True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Skip(max_consecutive=0), r"Skip\.max_consecutive"),
        (lambda: Skip(max_total=0), r"Skip\.max_total"),
        (lambda: LossSpike(factor=1.0), "must be greater than 1, got factor=1.0"),
        (lambda: LossSpike(factor=np.inf), "factor"),
        (lambda: LossSpike(rate=1.0), "rate"),
        (lambda: LossSpike(warmup_steps=0), "warmup_steps"),
        (lambda: train_step.GammaBins(number=-1), "gamma_bins"),
    ],
)
def test_numbers_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Loss by gamma.


def test_the_loss_by_gamma_is_the_mean_over_the_images_of_each_bin():
    """Against NumPy's histogram, over two steps."""
    state, update = make(guards.STOP, optimizer=None)
    low, high, number = BINS.low, BINS.high, BINS.number
    sums, counts = np.zeros(number), np.zeros(number)
    for step in range(2):
        key = jax.random.fold_in(KEY, step)
        _, parts = jax.jit(poisonable, static_argnums=3)(state.params, batch_of(step), key, 8)
        edges = np.linspace(low, high, number + 1)
        gamma, loss = np.asarray(parts["gamma"]), np.asarray(parts["loss"])
        assert ((gamma > low) & (gamma < high)).all()
        sums += np.histogram(gamma, edges, weights=loss)[0]
        counts += np.histogram(gamma, edges)[0]
        state, _ = update(state, batch_of(step))
    means = train_state.window_means(state)
    assert (counts > 0).all()
    np.testing.assert_allclose(means["loss_by_gamma"], sums / counts, rtol=1e-5)
    np.testing.assert_allclose(means["gamma_share"], counts / 16, rtol=1e-6)
    np.testing.assert_allclose(
        np.dot(means["loss_by_gamma"], means["gamma_share"]), means["loss"], rtol=1e-5
    )


def test_gammas_outside_count_to_the_ends_and_one_bad_image_to_its_own_bin():
    gamma = jnp.asarray([-100.0, -7.9, 4.9, 100.0, 0.0])
    loss = jnp.asarray([1.0, 2.0, 3.0, 4.0, np.nan])
    sums = BINS.sums(gamma, loss)
    np.testing.assert_allclose(sums["gamma_share"], [0.4, 0.0, 0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose(sums["loss_by_gamma"], [0.6, 0.0, np.nan, 1.4], rtol=1e-6)


@pytest.mark.full
def test_bins_and_microbatches(float64):
    state, update = make(guards.STOP)
    whole, _ = update(state, batch_of(0))
    _, update = make(guards.STOP, num_microbatches=4)
    parts, _ = update(state, batch_of(0))
    for name, each in whole.window.items():
        np.testing.assert_allclose(parts.window[name], each, rtol=1e-11, err_msg=name)


# Whole runs.


def run(model_dir, train_steps=6, **changes):
    trainer = tiny.trainer(model_dir, train_steps, **({"eval_period": None} | changes))
    return trainer.run(tiny.model(), tiny.config())


def poison(monkeypatch, *steps):
    """Make the losses of these steps, counted from 0, NaN."""
    train_batch = batches.train_batch

    def poisoned(split, config, step, rows=None):
        batch = train_batch(split, config, step, rows)
        if step in steps:
            batch["conditioning"] = np.full_like(batch["conditioning"], np.nan)
        return batch

    monkeypatch.setattr(batches, "train_batch", poisoned)


def test_a_run_skips_a_bad_step_and_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
    """Stopped in mid-window after the skipped step: the same rows, the same state."""
    poison(monkeypatch, 3)
    changes = {"non_finite": Skip(), "log_period": 6, "loss_spike": LossSpike(warmup_steps=1)}
    whole = run(tmp_path / "whole", **changes)
    assert "Step 4 is not finite" in capsys.readouterr().out
    run(tmp_path / "cut", 5, **changes)
    (tmp_path / "cut" / "metrics.jsonl").write_text("")
    cut = run(tmp_path / "cut", 6, **changes)
    assert cut["params_sha256"] == whole["params_sha256"]
    assert cut["ema_sha256"] == whole["ema_sha256"]
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    (row,) = rows(tmp_path / "whole")
    assert row["train/skipped"] == 1
    assert len(row["train/loss_by_gamma"]) == len(row["train/gamma_share"]) == 16
    assert row["train/learning_rate"] == pytest.approx(1e-2)


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 4), (2, 1)])
def test_guards_count_on_where_accumulation_changes(tmp_path, monkeypatch, before, now):
    poison(monkeypatch, 1, 4)

    def part(steps, number):
        optimizer = optimizers.AdamW(learning_rate=1e-2, accumulation_steps=number)
        return run(tmp_path, steps, non_finite=Skip(max_total=1), optimizer=optimizer)

    part(4, before)
    with pytest.raises(checks.NonFiniteError, match="max_total"):
        part(6, now)


def test_the_logged_learning_rate_is_that_of_the_last_update(tmp_path, monkeypatch):
    """In the warm-up, where every update has another; a skipped step is no update."""
    poison(monkeypatch, 1, 3)
    optimizer = optimizers.AdamW(learning_rate=1e-2, warmup_steps=50)
    run(tmp_path, 6, non_finite=Skip(), log_period=1, optimizer=optimizer)
    logged = [row["train/learning_rate"] for row in rows(tmp_path)]
    expected = [float(optimizer.learning_rate_at(update)) for update in (0, 0, 1, 1, 2, 3)]
    np.testing.assert_allclose(logged, expected, rtol=1e-6)


def test_the_logged_learning_rate_is_that_of_the_last_accumulated_update(tmp_path):
    """Update u, after steps 2 u + 2, has the rate of its last step; before the first, none had."""
    optimizer = optimizers.AdamW(learning_rate=1e-2, warmup_steps=50, accumulation_steps=2)
    run(tmp_path, 6, log_period=1, optimizer=optimizer)
    logged = [row["train/learning_rate"] for row in rows(tmp_path)]
    expected = [float(optimizer.learning_rate_at(step)) for step in (0, 1, 1, 3, 3, 5)]
    np.testing.assert_allclose(logged, expected, rtol=1e-6)


@pytest.mark.parametrize("change", ["warm start", "accumulation"])
def test_a_replay_and_the_dry_run_start_from_the_state_of_the_run(tmp_path, change):
    """A reset optimizer keeps its place in the schedule; part of an accumulation is dropped."""
    fields = {"learning_rate": 1e-2, "warmup_steps": 50}
    run(tmp_path / "a", 5, optimizer=optimizers.AdamW(**fields, accumulation_steps=2))
    folder, restore = tmp_path / "b", {"path": str(tmp_path / "a" / "checkpoint_5")}
    if change == "accumulation":
        optimizer = optimizers.AdamW(**fields, accumulation_steps=4)
    else:
        optimizer, restore = optimizers.AdamW(**fields), {**restore, "optimizer": "reset"}
    restore = saving.RestoreCheckpointConfig(**restore)
    trainer = tiny.trainer(folder, 8, optimizer=optimizer, restore=restore)
    setup = trainer._setup(tiny.model(), tiny.config(), None)
    with saving.Checkpoints(folder, trainer.checkpoints, setup.facts) as saved:
        begun = resume_or_begin(setup, saved)
    replayed = replays._state_before(6, setup, trainer.checkpoints)
    jax.tree.map(np.testing.assert_array_equal, replayed, begun.state)
    planned = trainer.dry_run(tiny.model(image_shape=tiny.SHAPE), tiny.config())
    summary = begun.restored.report.partition("\n  step")[0]
    assert summary.strip() in planned


def test_the_batch_of_a_step_that_stopped_the_run_can_be_replayed(tmp_path, monkeypatch):
    poison(monkeypatch, 4)
    with pytest.raises(checks.NonFiniteError, match=r"Step 5 is not finite.*Trainer\.replay") as e:
        run(tmp_path / "run", log_period=1)
    path = tmp_path / "run" / "train" / "bad_step_5.npz"
    assert e.value.batch == str(path) in str(e.value)
    assert "Or skip such steps" in str(e.value)
    bad = replays.read(path)
    assert (bad.step, bad.seed) == (4, 0)
    assert np.isnan(bad.health["loss"])
    np.testing.assert_array_equal(
        bad.batch["index"], batches.train_batch(tiny.split(), tiny.config(), 4)["index"]
    )
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.undo()
    tiny.use_tiny_data(monkeypatch)  # good data again: the replay reads the file
    with pytest.raises(checks.NonFiniteError, match=r"not finite for 4 of 4 images") as e:
        run(tmp_path / "run", replay=str(path))
    assert "gradient is not finite in 4 of 4 leaves: hidden/bias" in str(e.value)
    assert "in the run itself: loss nan, norm of the gradient nan" in str(e.value)
    assert sorted(tmp_path.rglob("*")) == before

    # A good step, whose row has its loss alone.
    batch = batches.train_batch(tiny.split(), tiny.config(), 3)
    replays.BadStep(step=3, seed=0, batch=batch, health={}).write(tmp_path / "sound.npz")
    for parts in (1, 2):  # microbatches, of the same random numbers
        changes = {"replay": str(tmp_path / "sound.npz"), "num_microbatches": parts}
        report = run(tmp_path / "run", **changes)["report"]
        assert "gradient is not finite in 0 of 4 leaves" in report
        loss = float(report.split()[1].rstrip(","))
        np.testing.assert_allclose(loss, rows(tmp_path / "run")[3]["train/loss"], rtol=1e-6)


def test_a_replay_begins_at_the_last_checkpoint_before_its_step(tmp_path):
    run(tmp_path, 5)
    trainer = tiny.trainer(tmp_path, 6)
    setup = trainer._setup(tiny.model(), tiny.config(), None)
    steps = [
        int(replays._state_before(step, setup, trainer.checkpoints).step) for step in (1, 3, 4)
    ]
    assert steps == [0, 2, 4]


def test_no_step_is_replayed_from_a_checkpoint_after_it(tmp_path):
    """The run that it started from was trained on."""
    run(tmp_path / "a", 5)
    batch = batches.train_batch(tiny.split(), tiny.config(), 3)
    replays.BadStep(step=3, seed=0, batch=batch, health={}).write(tmp_path / "bad.npz")
    restore = saving.RestoreCheckpointConfig(path=str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"a is at step 5 now, beyond step 4 of .*bad\.npz"):
        run(tmp_path / "b", replay=str(tmp_path / "bad.npz"), restore=restore)


def test_a_file_of_another_run_is_not_replayed(tmp_path):
    batch = batches.train_batch(tiny.split(), tiny.config(), 0)
    replays.BadStep(step=0, seed=7, batch=batch, health={}).write(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="seed 7, this run has seed 0"):
        run(tmp_path / "run", replay=str(tmp_path / "a.npz"))
    other = {
        "batch size": batches.train_batch(tiny.split(), tiny.config(2), 0),
        "larger": batches.train_batch(tiny.split(), tiny.config(8), 0),
        "no image": {name: each for name, each in batch.items() if name != "image"},
    }
    for found in other.values():
        replays.BadStep(step=0, seed=0, batch=found, health={}).write(tmp_path / "c.npz")
        with pytest.raises(ValueError, match="shapes of this run, .*Bind the BATCH_SIZE"):
            run(tmp_path / "run", replay=str(tmp_path / "c.npz"))
    np.savez(tmp_path / "b.npz", step=1)
    (tmp_path / "empty.npz").touch()
    for name in ("b.npz", "none.npz", "empty.npz"):
        with pytest.raises(ValueError, match=r"must be the path of a bad_step_<step>.npz .*got"):
            run(tmp_path / "run", replay=str(tmp_path / name))


def test_a_spike_stops_the_run_with_its_reason(tmp_path):
    optimizer = optax.sgd(lambda step: jnp.where(step == 3, 300.0, 1e-3))
    rule = LossSpike(factor=10.0, warmup_steps=2)
    with pytest.raises(checks.LossSpikeError, match=r"Step 5 is a spike"):
        run(tmp_path / "run", optimizer=optimizer, loss_spike=rule)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["exit_reason"], summary["step"]) == ("loss_spike", 5)
    assert (tmp_path / "run" / "train" / "bad_step_5.npz").exists()
    assert saving.saved_steps(tmp_path / "run")[-1] == 4


@pytest.mark.full
def test_bins_do_not_change_the_run_and_can_change_between_restarts(tmp_path, caplog):
    without = run(tmp_path / "without", 3, gamma_bins=0)
    assert not any("gamma" in name for row in rows(tmp_path / "without") for name in row)
    assert run(tmp_path / "with", 3)["params_sha256"] == without["params_sha256"]
    run(tmp_path / "without", 6, gamma_bins=4, non_finite=Skip())
    assert "keeps another window than this run" in caplog.text
    assert len(rows(tmp_path / "without")[-1]["train/loss_by_gamma"]) == 4
    assert "another guard" not in caplog.text
    assert "non_finite was Stop and is now Skip" in caplog.text


def test_a_checkpoint_without_the_guards_memory_is_restored(tmp_path, caplog, monkeypatch):
    """As saved by versions without it."""
    parts = restoring.parts

    def old(state):
        whole = parts(state)
        del whole["training"]["guard"]
        return whole

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "parts", old)
        run(tmp_path / "run", 3)
    run(tmp_path / "run", 6)
    assert "keeps another guard than this run" in caplog.text
    run(tmp_path / "whole", 6)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
