"""Schemathesis over the API document, against the engine as `make run` starts it, with tokens and without.

`make test` takes a short look with the same numbers each time, `make fuzz` a long one.
"""
