"""Entries of `data.sources`: a kind, and the keys that it has."""

from collections.abc import Callable, Mapping

from aigc_jax.errors import BadConfig, choose, nearest

# kind -> (the maker, the keys that a source of this kind has besides weight)
Kinds = Mapping[str, tuple[Callable, tuple[str, ...]]]


def check_source(where: str, source: Mapping, kinds: Kinds) -> None:
  """Raises BadConfig for an unknown kind, or a key that lacks or is unknown."""
  kind = source.get("kind")
  _, keys = choose(kind, kinds, f"{where}.kind")
  for key in source:
    if key not in (*keys, "kind", "weight"):
      raise BadConfig(
        f"{where}: unknown key {key!r}{nearest(key, keys)} (a source of kind "
        f"{kind!r} has: {', '.join(keys)}, weight)"
      )
  for key in keys:
    if not isinstance(source.get(key), str) or not source[key]:
      raise BadConfig(
        f"{where}: no {key!r} (a source of kind {kind!r} needs: "
        f"{', '.join(keys)}): --config.{where}.{key}=..."
      )
