"""Architectures: inputs, a stack, a head. They only predict."""

from aigc_jax.models.decoder import decoder

# The kinds a config may name; each is built from plain keyword arguments.
MODELS = {"decoder": decoder}
