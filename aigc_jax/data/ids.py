"""How many ids and labels a model has, and the flags that give it more.

A model of several parts has them in several keys, which must agree.
"""

from collections.abc import Mapping


def vocab_of(model: Mapping, otherwise: int) -> int:
  """The least of the ids that config.model, or a part of it, has."""
  known = (p.get("vocab") for p in (model, *model.get("parts", {}).values()))
  return min((x for x in known if x is not None), default=otherwise)


def flags_of(model: Mapping, key: str, value: int) -> str:
  """What sets `key` of config.model to a value, wherever that stands.

  In each part too that has the key as the whole has it, or, where the whole has
  none, less of it: one with more is of no harm. The prior of image tokens has
  an id for each of them beside its codes.
  """
  own = model.get(key)
  found = {f"model.{key}": value} if own is not None else {}
  for name, part in model.get("parts", {}).items():
    theirs = part.get(key)
    if theirs is not None and (theirs == own if own is not None else True):
      found[f"model.parts.{name}.{key}"] = value
  counted = own is not None and key in ("vocab", "classes")
  if model.get("kind") == "image_tokens" and counted:
    vocab = model["parts"]["prior"]["vocab"] + value - own
    found["model.parts.prior.vocab"] = vocab
  found = found or {f"model.{key}": value}
  return " ".join(f"--config.{name}={x}" for name, x in found.items())
