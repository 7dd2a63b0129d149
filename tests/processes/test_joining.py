"""jax's view of the processes, and compilation by all of them."""

import sys

import pytest

from idode_gin.processes import jax_internals, joining


def test_no_client_without_others() -> None:
    import jax

    assert jax.process_count() == 1
    assert joining.client() is None
    assert "jax" in sys.modules


def test_nobody_runs_before_all_have_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax
    import numpy as np

    happened: list[str] = []

    class Client:
        def wait_at_barrier(self, name: str, timeout: int) -> None:
            happened.append(f"waited for {name.rpartition('/')[0]}")

    @jax.jit
    def double(values):
        happened.append("compiled")
        jax.debug.callback(lambda: happened.append("ran"))
        return 2 * values

    assert joining.together(double) is double
    monkeypatch.setattr(joining, "count", lambda: 2)
    monkeypatch.setattr(joining, "client", Client)
    shared = joining.together(double)
    assert jax.eval_shape(shared, np.ones(3)).shape == (3,)
    happened.clear()
    for _ in range(2):
        np.testing.assert_array_equal(shared(jax.numpy.ones(4)), 2 * np.ones(4))
        jax.effects_barrier()
    assert happened == ["compiled", "waited for idode_gin/compiled", "ran", "ran"]


def test_private_names_of_jax_are_still_there() -> None:
    import jax

    state, message = jax_internals.state(), f"jax {jax.__version__} has moved what we use"
    for name in ("client", "num_processes", "process_id", "coordinator_address"):
        assert hasattr(state, name), message
    assert jax_internals.detect("host:1", 2, 1, [], 1)[:3] == ("host:1", 2, 1), message
