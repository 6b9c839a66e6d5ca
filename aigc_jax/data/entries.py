"""Entries of `data.sources`: a kind, and the keys that it has."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from aigc_jax.errors import BadConfig, choose, nearest

# kind -> (the maker, the keys that a source of this kind has besides weight)
Kinds = Mapping[str, tuple[Callable, tuple[str, ...]]]
# What an entry that does not say it has, where its kind has such a key.
BY_DEFAULT = {"split": "train", "field": "text", "weight": 1.0}


def whole(source: Mapping, keys: Iterable[str]) -> dict:
  """An entry with what its kind, of these keys, has by default."""
  return {k: v for k, v in BY_DEFAULT.items() if k in keys} | dict(source)


def wholes(sources: Sequence[Mapping], kinds: Kinds) -> list[dict]:
  """Entries that `check_source` passed, each with what it has by default."""
  return [whole(source, kinds[source["kind"]][1]) for source in sources]


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
  given = whole(source, keys)
  for key in keys:
    if not isinstance(given.get(key), str) or not given[key]:
      raise BadConfig(
        f"{where}: no {key!r} (a source of kind {kind!r} needs: "
        f"{', '.join(keys)}): --config.{where}.{key}=..."
      )
