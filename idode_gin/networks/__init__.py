"""Networks: latent, time and conditioning to raw output."""
