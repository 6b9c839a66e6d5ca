"""Random numbers in a loss: functions of the keys that the data gives each row.

The entry "draw" (B, 2) uint32 of a batch holds a key for each row, which
belongs to the example and the time it comes (`data.draw.Draw.keys`). So the
noise of a row is the same however a batch is parted, on any number of devices,
and after any stop. Names keep what is drawn for different ends apart.
"""

import zlib

import jax
import jax.numpy as jnp


def row_keys(draw_B2: jax.Array, name: str) -> jax.Array:
  """(B,) keys of JAX for what is called `name`."""
  keys_B = jax.random.wrap_key_data(draw_B2, impl="threefry2x32")
  salt = jnp.uint32(zlib.crc32(name.encode()))
  return jax.vmap(lambda key: jax.random.fold_in(key, salt))(keys_B)


def uniform(draw_B2: jax.Array, name: str) -> jax.Array:
  """(B,) float32, from 0 to below 1."""
  return jax.vmap(jax.random.uniform)(row_keys(draw_B2, name))


def normal(draw_B2: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
  """(B, *shape) float32, of mean 0 and deviation 1."""
  keys_B = row_keys(draw_B2, name)
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
