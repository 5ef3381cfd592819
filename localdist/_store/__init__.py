"""Values in shared memory, or on disk when it is full (STORE): files that all processes map, and their ledger."""
