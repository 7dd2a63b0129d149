"""Initial-value solvers and Jacobian traces. Nothing here knows diffusion."""
