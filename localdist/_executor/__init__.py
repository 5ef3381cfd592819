"""`Executor`: the face of `concurrent.futures`, over workers of its own or those of a `Client`."""
