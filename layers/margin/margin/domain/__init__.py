"""The pure rules of margin, positions and liquidation: no I/O, no clock, no store.

Everything here is a frozen value or a function of values, computed exactly in :data:`margin.domain.decimals.EXACT`.
Clients load the values, services decide with these functions, and whatever changed is returned, never written in place.
"""
