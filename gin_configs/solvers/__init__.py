"""ODE solvers; each file defines SOLVER."""
