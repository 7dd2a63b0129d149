"""Join, agree, stop and fail together."""
