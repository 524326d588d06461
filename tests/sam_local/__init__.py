"""The functions in containers, as `make sam-local` runs them: needs a Docker engine."""
