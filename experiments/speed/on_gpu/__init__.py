"""Minutes on a GPU: what is true, how fast it is, and what beside it."""
