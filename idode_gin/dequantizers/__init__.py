"""From integer pixels to the start of the ODE, with the density that adds."""
