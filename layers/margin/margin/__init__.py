"""A margin engine for perpetual futures: rules in `domain`, use cases in `services`, stores in `clients`."""

__version__ = "0.1.0"
