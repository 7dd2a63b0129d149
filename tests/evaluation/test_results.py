"""Files of an evaluation: rows add up, and the summary follows from them."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from pyarrow import parquet as arrow

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.evaluation import parity, results
from idode_gin.evaluation import scores as scores_lib
from idode_gin.evaluation import summary as summary_lib
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.feed import loading
from idode_gin.interop.official_evaluation import OfficialParity
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.bound import VariationalBound
from idode_gin.runs import run_inputs
from idode_gin.solvers.divergence import Hutchinson
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.solvers.probes import Gaussian

NUMBER, DIMS = 5, math.prod(tiny.SHAPE)
PARTS = {"log_prior", "log_det", "neg_log_q", "log_reconstruction"}
ERRORS = {"repeats_sd", "trace_sd", "importance_bias"}
PLAIN = {"nats", "bpd", "nfe"}
LIKELIHOOD = {
    "dequantizer": TruncatedNormal(),
    "solver": FixedGrid(steps=2),
    "divergence": Hutchinson(num_probes=2, probe=Gaussian()),
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The directory and the summary of an evaluation of an untrained network."""
    folder = tmp_path_factory.mktemp("evaluated")

    def load_params(model, shape, *_):
        params = model.init(jax.random.key(0), shape)
        return saving.RestoredParams(params, 3, folder / "checkpoint_3", {})

    with pytest.MonkeyPatch.context() as patch:
        splits = {"train": tiny.split(number=NUMBER), "other": tiny.split(number=NUMBER, seed=1)}
        patch.setattr(loading, "load_split", lambda config: splits[config.split])
        patch.setattr(run_inputs, "load_params", load_params)
        patch.setattr(saving, "find", lambda path: path)
        made = Evaluator(
            output_dir=str(folder),
            checkpoint_path="made",
            likelihoods={"tn": ODELikelihood(**LIKELIHOOD, num_repeats=3)},
            variational_bound=VariationalBound(num_times=2),
            histogram_split="other",
        )
        return folder, made.run(tiny.model(), tiny.config(4), "ab" * 32)


@pytest.fixture(scope="module")
def rows(evaluated):
    with np.load(evaluated[0] / "results.npz") as found:
        return dict(found)


def test_a_row_per_image_with_every_column(evaluated, rows):
    expected = {f"tn/{name}" for name in PLAIN | PARTS | ERRORS | {"success"}}
    bound = PLAIN | {"reconstruction", "prior", "diffusion"}
    expected |= {f"variational_bound/{name}" for name in bound} | {"index", "histogram/bpd"}
    assert set(rows) == expected
    table = arrow.read_table(evaluated[0] / "results.parquet")
    assert table.column_names == list(rows)
    for name, values in rows.items():
        np.testing.assert_array_equal(table[name].to_numpy(), values)
    np.testing.assert_array_equal(rows["index"], range(NUMBER))


def test_parts_add_up_to_the_bound(rows):
    tn = {name: rows[f"tn/{name}"] for name in PLAIN | PARTS}
    np.testing.assert_allclose(-tn["nats"], sum(tn[part] for part in PARTS), rtol=1e-5)
    terms = [rows[f"variational_bound/{each}"] for each in ("reconstruction", "prior", "diffusion")]
    np.testing.assert_allclose(rows["variational_bound/bpd"], sum(terms), rtol=1e-5)
    for name in ("tn", "variational_bound"):
        bpd = rows[f"{name}/nats"] / (DIMS * math.log(2))
        np.testing.assert_allclose(rows[f"{name}/bpd"], bpd, rtol=1e-5)


def test_columns_are_the_figures_of_the_likelihood(rows):
    """In bits per dim, and with the deviation of a sample for the spread over repeats."""
    model, split = tiny.model(), tiny.split(number=NUMBER)
    batch = {
        "image": jnp.asarray(split.images),
        "conditioning": jnp.asarray(split.conditioning),
        "index": jnp.arange(NUMBER),
    }
    estimator = ODELikelihood(**LIKELIHOOD, num_repeats=3)
    params, key = model.init(jax.random.key(0), tiny.SHAPE), scores_lib.key_of(0, "tn")
    found = jax.jit(lambda: model.likelihood_fn(params, batch, key, estimator))()
    bits = 1 / (DIMS * math.log(2))
    spread = [
        math.sqrt(sum((each - np.mean(each)) ** 2) / 2) for each in np.asarray(found.repeats).T
    ]
    expected = {
        **{part: getattr(found, part) for part in PARTS},
        "nats": -found.log_p,
        "bpd": -found.log_p * bits,
        "nfe": found.num_evaluations,
        "repeats_sd": np.array(spread) * bits,
        "trace_sd": found.trace_sd * bits,
        "importance_bias": found.importance_bias * bits,
        "success": np.ones(NUMBER),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(rows[f"tn/{name}"], values, rtol=1e-4, err_msg=name)


def test_the_summary_follows_from_the_rows(evaluated, rows):
    folder, summary = evaluated
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["config_sha256"] == "ab" * 32
    found = summary["tn"]
    assert found["num_images"] == summary["num_images"] == NUMBER
    assert found["mean"] == pytest.approx(rows["tn/bpd"].mean())
    assert found["stderr"] == pytest.approx(rows["tn/bpd"].std(ddof=1) / NUMBER**0.5)
    # The variance of a mean of independent figures: the sum of theirs over N^2.
    variance = (rows["tn/repeats_sd"] ** 2 / 3).sum() / NUMBER**2
    assert found["stderr_dequantization"] == pytest.approx(variance**0.5)
    variance = (rows["tn/trace_sd"] ** 2).sum() / NUMBER**2
    assert found["stderr_probes"] == pytest.approx(variance**0.5)
    assert found["stderr_dequantization"] > 0 < found["stderr_probes"]
    assert found["nfe"] == rows["tn/nfe"].mean()
    assert summary["variational_bound"]["stderr_dequantization"] is None


def test_every_entry_of_the_summary(evaluated, rows):
    folder, summary = evaluated
    head = {
        **tiny.split(number=NUMBER).facts(),
        **{"levels": tiny.LEVELS, "checkpoint": str(folder / "checkpoint_3"), "step": 3},
        **{"parameters": "ema", "seed": 0, "solve_size": 32, "config_sha256": "ab" * 32},
        "histogram_bpd": pytest.approx(rows["histogram/bpd"].mean()),
    }
    others = {"ema_sha256", "tn", "variational_bound", "wall_seconds", "devices"}
    assert set(summary) == set(head) | others
    assert {name: summary[name] for name in head} == head
    errors = {"stderr", "stderr_dequantization", "stderr_probes", "solver_error"}
    common = {"mean", "num_images", "nfe", "precision_error", "settings"} | errors
    terms = {
        "tn": {"nats", "importance_bias", *PARTS},
        "variational_bound": {"nats", "reconstruction", "prior", "diffusion"},
    }
    for bound, names in terms.items():
        assert set(summary[bound]) == common | names
        assert summary[bound]["settings"].keys() >= {"bound"}
        for name in names:
            assert summary[bound][name] == pytest.approx(rows[f"{bound}/{name}"].mean()), name


def test_plots_of_every_bound(evaluated):
    names = {each.name for each in (evaluated[0] / "plots").iterdir()}
    assert names == {"bpd_tn.png", "bpd_variational_bound.png", "nfe.png", "integrand.png"}


def test_figures_do_not_depend_on_plots(tmp_path, evaluated, rows, caplog):
    """A network that is infinite at the very end of its range has a bound, but no plot of it."""
    scores = {name: rows[f"variational_bound/{name}"] for name in ("bpd", "nfe")}
    given = evaluated[1], {"variational_bound": scores}, None, tiny.split(number=NUMBER)
    integrand = lambda: (np.arange(3.0), np.array([1.0, 2.0, np.inf]), NUMBER)  # noqa: E731
    results.write(tmp_path, *given, integrand, {})
    assert json.loads((tmp_path / "summary.json").read_text()) == evaluated[1]
    assert "integrand.png: not drawn: `values` must be finite" in caplog.text
    assert (tmp_path / "plots" / "nfe.png").exists()


def test_unknown_errors_are_none():
    scores = {name: np.ones(4) for name in ("bpd", "nfe")}
    unknown = {name: np.full(4, np.nan) for name in ERRORS}
    found = summary_lib.summarize({**scores, **unknown})
    assert found["stderr_dequantization"] is found["stderr_probes"] is None
    assert found["importance_bias"] is found["solver_error"] is found["precision_error"] is None
    known = {"error": 1e-4, "precision_error": 2e-4}
    found = summary_lib.summarize({**scores, **unknown}, solver_error=known)
    assert (found["solver_error"], found["precision_error"]) == ({"error": 1e-4}, 2e-4)


def test_the_error_of_draws_is_the_spread_of_means():
    """2,000 evaluations of 30 images, which differ in their draws alone."""
    random = np.random.default_rng(0)
    image, spread = random.normal(3, 1, (30, 1)), random.uniform(0.1, 2, (30, 1))
    repeats = image + spread * random.normal(size=(2000, 30, 4))
    means, errors = [], []
    for each in repeats:
        bpd = each.mean(axis=1)
        scores = {"bpd": bpd, "nfe": np.ones(30), "repeats_sd": each.std(axis=1, ddof=1)}
        found = summary_lib.summarize(scores, num_repeats=4)
        means.append(found["mean"])
        errors.append(found["stderr_dequantization"])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.05)


def test_the_table_has_the_solver_error():
    entry = {"mean": 2.0, "stderr": None, "solver_error": {"error": 2.5e-4}, "nfe": 40.0}
    summary = {
        **{"dataset": "made", "variant": "", "split": "test", "num_images": 1, "step": 5},
        **{"image_shape": [8, 8, 1], "levels": 17, "sha256": "0" * 64, "tn": entry},
    }
    _, head, row = summary_lib.table(summary).split("\n")
    assert head.split() == ["bound", "bpd", "std.", "error", "solver", "error", "NFE"]
    assert row.split() == ["tn", "2.0000", "-", "2.5e-04", "40"]
    entry["solver_error"] |= {"tolerance": 1e-4, "is_within": False}
    assert summary_lib.table(summary).endswith(
        f"{row}\nThe solver error of tn is not within 1.0e-04."
    )
    *_, last = summary_lib.table(summary, np.array([2.0, 3.0, 7.0])).split("\n")[:-1]
    error = math.sqrt((4 + 1 + 9) / 2 / 3)
    assert last.split() == ["histogram", "4.0000", f"{error:.4f}", "-", "-"]


def test_without_pyarrow_an_old_parquet_file_is_removed(tmp_path, monkeypatch, caplog):
    results.write_rows(tmp_path, {"index": np.arange(3)})
    first = (tmp_path / "results.parquet").read_bytes()
    results.write_rows(tmp_path, {"index": np.arange(3)})
    assert (tmp_path / "results.parquet").read_bytes() == first
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    results.write_rows(tmp_path, {"index": np.arange(4)})
    assert [each.name for each in tmp_path.iterdir()] == ["results.npz"]
    assert "pyarrow is not installed" in caplog.text


@pytest.mark.parametrize("name", ["variational_bound", "histogram", "index", "a/b", ""])
def test_invalid_names_of_likelihoods(name):
    with pytest.raises(ValueError, match="`likelihoods`"):
        Evaluator(
            output_dir="o", checkpoint_path="c", likelihoods={name: ODELikelihood(**LIKELIHOOD)}
        )


def test_the_integrand_is_a_mean_over_whole_batches_spread_over_the_split():
    model, split = tiny.model(), tiny.split(number=NUMBER)
    params = model.init(jax.random.key(0), tiny.SHAPE)
    gammas, values, count = scores_lib.integrand(model, split, 3, solve_size=2)(params)
    chosen = np.array([0, 1, 3, 4])
    batch = {
        "image": jnp.asarray(split.images[chosen]),
        "conditioning": jnp.asarray(split.conditioning[chosen]),
        "index": jnp.asarray(chosen),
    }
    np.testing.assert_allclose(gammas, np.linspace(model.time.gamma_min, 5.0, 41), rtol=1e-6)
    expected = jax.jit(model.integrand)(params, batch, jax.random.key(3), gammas)
    assert count == 4
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_scores_that_are_not_finite_raise():
    scores = {"bpd": np.array([1.0, np.inf, 2.0]), "success": np.array([1.0, 1.0, 0.0])}
    places = np.array([0, 20, 40])  # of the part of a split that is scored
    raised = pytest.raises(checks.NonFiniteError, match="tn: 2 of 3 images .* at place 20.*max_st")
    with raised:
        scores_lib.check_scores("tn", scores, places)
    del scores["success"]  # a variational bound solves nothing
    with pytest.raises(checks.NonFiniteError, match=r"tn: 1 of 3 .* infinity\. .* checkpoint\."):
        scores_lib.check_scores("tn", scores, places)


def test_figures_of_another_program_that_are_not_finite_raise():
    scores = {"bpd": np.ones(3), "success": np.ones(3), "parity/a": np.array([0.0, 0.0, np.nan])}
    with pytest.raises(checks.NonFiniteError, match="tn: 1 of 3 images .* at place 2"):
        scores_lib.check_scores("tn", scores, np.arange(3))


@pytest.mark.parametrize("whole", [None, 50])
def test_a_parity_knows_of_how_many_images_the_scored_ones_are(whole):
    scores = {"variational_bound": {"bpd": np.ones(5), "nfe": np.ones(5)}}
    head = {} if whole is None else {"whole_split": whole}
    bound, made = VariationalBound(), OfficialParity(num_batches=1, batch_size=4, num_skipped=0)
    found = summary_lib.assemble(head, scores, {}, bound, None, made)["parity"]
    assert found["variational_bound"]["images_never_scored"] == (whole or 5) - 4
    assert ("published" in found["variational_bound"]) == (whole is None)


def test_a_parity_table_lists_choices_between_right_and_published():
    short, long = {"right": 2.0, "published": 2.0}, {"right": 2.0, "log_k": -0.5, "published": 1.5}
    lines = parity.table({"variational_bound": short, "tn": long}, "A legend.").splitlines()
    assert lines[0] == "A legend."
    assert [line.split() for line in lines[2:]] == [
        ["right", "2.00000", "2.00000"],
        ["log_k", "-", "-0.50000"],
        ["published", "2.00000", "1.50000"],
    ]
