"""Mutation tests: break one formula at a time; a law test and a golden test must fail.

    python tests/mutants.py            all mutants, some ten minutes on 2 cores
    python tests/mutants.py 3 7        only those

A mutant is one changed line in a copy of the repository. The exit code is 1 if one survives.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("idode_gin", "tests", "gin_configs", "tasks", "pyproject.toml")
LOSS = "tests/golden/test_loss.py -k 'loss_VP_vel_imp_2nd and not float32 and not 32x32'"
DRIFT = "tests/golden/test_drift.py -k drift_SP_vel"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One changed line, and the pytest arguments of the tests that must fail.

    `tests/laws/test_mutants.py` checks that the line exists.
    """

    path: str
    before: str
    after: str
    law: str
    golden: str


MUTANTS = (
    Mutant(
        "schedules/straight_path.py",
        "return jax.nn.sigmoid(gamma / 2)",
        "return jax.nn.sigmoid(gamma)",
        "tests/laws/test_schedules.py",
        "tests/golden/test_components.py",
    ),
    Mutant(
        "parameterizations/velocity.py",
        "return 2 * jnp.sqrt(",
        "return jnp.sqrt(",
        "tests/laws/test_parameterizations.py -k closed_forms",
        DRIFT,
    ),
    Mutant(
        "parameterizations/velocity.py",
        "return -2 * schedule.dlog_alpha(gamma)",
        "return -1 * schedule.dlog_alpha(gamma)",
        "tests/laws/test_parameterizations.py -k closed_forms",
        DRIFT,
    ),
    Mutant(
        "parameterizations/base.py",
        "return (noise - b * z) / a",
        "return (noise + b * z) / a",
        "tests/laws/test_parameterizations.py -k inverse",
        LOSS,
    ),
    Mutant(
        "time_samplers/closed_form_importance.py",
        "return gamma, jax.nn.sigmoid(-gamma) / total",
        "return gamma, jax.nn.sigmoid(gamma) / total",
        "tests/laws/test_time_samplers.py -k closed_form",
        LOSS,
    ),
    Mutant(
        "time_samplers/importance.py",
        "remaining = u * total - mass_below[panel]",
        "remaining = u * total",
        "tests/laws/test_time_samplers.py -k density",
        "tests/golden/test_importance.py",
    ),
    Mutant(
        "losses/second_order.py",
        "(a * trace + b * dims) - dims + a**2",
        "(a * trace + b * dims) + dims + a**2",
        "tests/laws/test_losses.py -k second_order_equals",
        LOSS,
    ),
    Mutant(
        "losses/base.py",
        "constant = sigma**2 - 2 * jnp.log(sigma) - 1",
        "constant = sigma**2 - jnp.log(sigma) - 1",
        "tests/laws/test_bounds.py -k terms_shared",
        LOSS,
    ),
    Mutant(
        "ode.py",
        "self.schedule.sigma(gamma) * b / 2",
        "self.schedule.sigma(gamma) * b",
        "tests/laws/test_integration_variables.py",
        DRIFT,
    ),
    Mutant(
        "ode.py",
        "return self.schedule.sigma(gamma) * a / 2",
        "return self.schedule.sigma(gamma) * a",
        "tests/laws/test_likelihood.py -k gaussian_density_is_exact",
        DRIFT,
    ),
    Mutant(
        "dequantizers/truncated_normal.py",
        "cut = jnp.log(mass) - tau",
        "cut = jnp.log(mass) + tau",
        "tests/laws/test_dequantizers.py -k entropy",
        "tests/golden/test_ode.py -k 'test_likelihood and tn_K1 and not 32x32'",
    ),
    Mutant(
        "numerics.py",
        " - math.log(values.shape[0])",
        "",
        "tests/laws/test_likelihood.py -k equal_weights",
        "tests/golden/test_ode.py -k 'test_likelihood and tn_K3 and not float64 and not attn'",
    ),
    Mutant(
        "encoding.py",
        "return 2 * (level + 0.5) / self.levels - 1",
        "return 2 * level / self.levels - 1",
        "tests/laws/test_encoding.py",
        "tests/golden/test_components.py",
    ),
    Mutant(
        "encoding.py",
        "at_x = -0.5 * jnp.square(",
        "at_x = -1.0 * jnp.square(",
        "tests/laws/test_encoding.py",
        LOSS,
    ),
    Mutant(
        "numerics.py",
        "return -0.5 * (sum_pixels(noise**2) + num_dims(noise)",
        "return -1.0 * (sum_pixels(noise**2) + num_dims(noise)",
        "tests/laws/test_likelihood.py -k gaussian_density_is_exact",
        "tests/golden/test_ode.py -k 'test_likelihood and u_K1'",
    ),
)


def main(wanted: list[int]) -> int:
    """Runs the mutants and prints a table; the number of survivors decides the exit code."""
    survivors = 0
    numbers = wanted or range(1, len(MUTANTS) + 1)
    print(f"{'':>3}  {'law':<6}{'golden':<8}what was broken", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for part in PARTS:
            _copy(ROOT / part, copy / part)
        for number in numbers:
            mutant = MUTANTS[number - 1]
            law, golden = _apply(copy, mutant)
            survivors += not (law and golden)
            print(
                f"{number:>3}  {_word(law):<6}{_word(golden):<8}"
                f"{mutant.path}: {mutant.before} -> {mutant.after or 'nothing'}",
                flush=True,
            )
    print(f"{survivors} survived.")
    return 1 if survivors else 0


def _apply(copy: pathlib.Path, mutant: Mutant) -> tuple[bool, bool]:
    """Return if a law and a golden test fail in the mutated copy, and restore the copy."""
    path = copy / "idode_gin" / mutant.path
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.before) != 1:
        raise ValueError(
            f"{mutant.path} must hold {mutant.before!r} once, found it {text.count(mutant.before)} "
            "times: the code has changed, and this mutant must follow."
        )
    path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
    try:
        return _is_red(copy, mutant.law), _is_red(copy, mutant.golden)
    finally:
        path.write_text(text, encoding="utf-8")


def _is_red(copy: pathlib.Path, arguments: str) -> bool:
    """Return True if a test failed."""
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {arguments}"
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, shell=True, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{command}\ncould not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _word(is_red: bool) -> str:
    return "red" if is_red else "GREEN"


if __name__ == "__main__":
    sys.exit(main([int(each) for each in sys.argv[1:]]))
