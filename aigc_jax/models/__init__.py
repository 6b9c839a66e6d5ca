"""Architectures: inputs, a stack, a head. They only predict."""

from aigc_jax.models.decoder import decoder, widths

# The kinds a config may name; each is built from plain keyword arguments.
MODELS = {"decoder": decoder}

# What puts numbers for the widths of a kind that a config leaves None.
DERIVED = {"decoder": widths}
