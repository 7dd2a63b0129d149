"""Runs of upstream t5x with our models; its programs read them."""
