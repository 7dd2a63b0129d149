"""Training: the loop, one update, its outputs, guards, replays and throughput."""
