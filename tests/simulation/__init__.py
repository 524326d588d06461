"""The engine on stores in memory: a seed decides what runs when and what goes wrong, and a model judges."""
