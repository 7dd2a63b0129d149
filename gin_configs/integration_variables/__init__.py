"""Integration variables of the ODE; each file defines INTEGRATION_VARIABLE."""
