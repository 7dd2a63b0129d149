"""Complete runs: one program, model, task and objective, with all settings."""
