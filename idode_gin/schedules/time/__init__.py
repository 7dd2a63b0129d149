"""Time schedules: gamma as a function of time, gamma(t)."""
