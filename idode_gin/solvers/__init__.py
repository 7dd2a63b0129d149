"""Initial-value solvers and Jacobian traces, independent of diffusion."""
