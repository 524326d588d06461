"""The wire contract: the body of every request and answer, one module for each function, with examples.

Field names are fixed: callers depend on them. The API document is made of these classes.
"""

import margin.loading  # noqa: F401 - first, before all that takes long
