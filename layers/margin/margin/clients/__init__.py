"""Adapters to the stores: Redis (or Valkey) and PostgreSQL."""
