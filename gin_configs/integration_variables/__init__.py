"""What the ODE is integrated in: INTEGRATION_VARIABLE."""
