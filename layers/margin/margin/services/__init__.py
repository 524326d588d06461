"""Use cases: each service does one thing for a caller, with the stores that were passed to it."""
