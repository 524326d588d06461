"""A margin engine for perpetual futures: rules in `domain`, use cases in `services`, stores in `clients`."""
