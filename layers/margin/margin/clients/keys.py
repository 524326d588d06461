"""Names of the Redis keys.

One partition is a whole set of keys under one hash tag: everything that one account needs, instruments and marks
included, so that a script touches one slot. With a single partition there is no tag and the keys are those that
people read: ``balances``, ``position:1:BTC-PERP``, ``mark_prices``.
"""

from __future__ import annotations


def partition_of(account_id: int, partitions: int) -> int:
    """Partition that an account belongs to."""
    return account_id % partitions


def prefix(partition: int, partitions: int) -> str:
    """Return what stands before every key of a partition."""
    return "" if partitions == 1 else f"{{p{partition}}}:"


def marker(partition: int, partitions: int) -> str:
    """Name the one key that every script declares; the script derives the others from it."""
    return f"{prefix(partition, partitions)}marker"
