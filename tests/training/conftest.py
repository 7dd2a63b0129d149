"""Fixtures of the tests of training: tiny data, and one finished run."""

import pytest
import tiny
import tiny_runs

from idode_gin.reports import plots


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Load data without seqio and draw no plots, which would take half of the time."""
    tiny.use_tiny_data(monkeypatch)
    for name in ("plot_bpd_curve", "plot_integrand", "plot_loss_by_gamma"):
        monkeypatch.setattr(plots, name, lambda *_: None)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The run of six steps that others are compared with: its folder and summary."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_tiny_data(patch)
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        return folder, tiny_runs.run(folder, tensorboard=True)
