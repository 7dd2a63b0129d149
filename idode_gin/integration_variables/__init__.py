"""Variables that the ODE is integrated in: a time and a scale of the state."""
