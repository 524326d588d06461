"""Faults under load on real servers: whatever dies, freezes or goes missing, nothing is lost and nothing doubled.

`python -m tests.faults` runs every scenario and prints a table; the tests of this package run short ones.
"""
