"""How a client reaches a scheduler: one module for each way, behind `localdist.abc.Transport`."""
