"""Parameter groups: weight decay and learning-rate factor by path.

A group is dict(patterns=[...], weight_decay=w, learning_rate_factor=f), with
shell patterns over whole paths such as "stack/mlp/*/w". A parameter belongs to
the first group that matches it. In none, its factor is 1, and its decay is
zero where NO_DECAY matches it and the run's weight decay elsewhere. A factor
of 0 freezes.

A group that says every_steps or clip is a player, as the discriminator is in
a game of two: its gradients are clipped by their own norm, and with
every_steps=n it moves in the first of every n updates alone. In the others its
parameters, its moments and the count behind their bias stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aigc_jax import tree
from aigc_jax.errors import BadConfig, nearest
from aigc_jax.layers.parametrization import Factors
from aigc_jax.signature import check_type

# Norms, biases, embeddings, codebooks and temperatures do not decay by
# themselves, nor what a StyleGAN begins an image with and how strong its noise
# is. A head that is not the embedding is a matrix like others and does.
NO_DECAY = (
  "*/scale", "*/bias", "*/log_scale", "*embed*/table", "*position*/table",
  "*token*/table", "*book/table", "*/start", "*/strength",
)  # fmt: skip

KEYS = ("patterns", "weight_decay", "learning_rate_factor")
PLAYERS = ("every_steps", "clip")  # that a group may have


@dataclass(frozen=True)
class Treatment:
  """What one parameter gets besides its direction."""

  weight_decay: float
  learning_rate_factor: float
  player: "Player | None" = None
  epsilon: float = 1.0  # factor of optim.eps


@dataclass(frozen=True)
class Player:
  """A group that moves by itself. clip: None is that of all the others."""

  group: int
  every_steps: int
  clip: float | None


def treatments(
  params: tree.Tree,
  groups: Sequence[Mapping],
  weight_decay: float,
  factors: Mapping[str, Factors] | None = None,
) -> dict[str, Treatment]:
  """{path: Treatment} for every leaf of `params`, which may be abstract.

  factors: by path, what a model's parametrization multiplies all of it by.
  Raises BadConfig for a group without KEYS or with others than those and
  PLAYERS, a number out of range, or a pattern that no path matches.
  """
  names = tree.names(params)
  _positive("optim.weight_decay", weight_decay)
  for i, group in enumerate(groups):
    _check(f"optim.groups[{i}]", group, names)
  found = {name: _of(name, groups, weight_decay) for name in names}
  for name, by in (factors or {}).items():
    found[name] = replace(
      found[name],
      weight_decay=found[name].weight_decay * by.weight_decay,
      learning_rate_factor=found[name].learning_rate_factor * by.learning_rate,
      epsilon=by.epsilon,
    )
  return found


def _of(name: str, groups: Sequence[Mapping], decay: float) -> Treatment:
  for i, group in enumerate(groups):
    if tree.match(group["patterns"], name):
      player = None
      if any(key in group for key in PLAYERS):
        player = Player(i, group.get("every_steps", 1), group.get("clip"))
      decay, factor = group["weight_decay"], group["learning_rate_factor"]
      return Treatment(decay, factor, player)
  return Treatment(0.0 if tree.match(NO_DECAY, name) else decay, 1.0)


def _check(where: str, group: Mapping, names: list[str]) -> None:
  if not isinstance(group, Mapping):
    raise BadConfig(
      f"{where}={group!r}: expected dict({', '.join(f'{k}=...' for k in KEYS)})"
      ", which is written in a config, not on the command line"
    )
  known = (*KEYS, *PLAYERS)
  for key in group:
    if key not in known:
      raise BadConfig(
        f"{where} has no key {key!r}{nearest(key, known)} "
        f"(its keys are {', '.join(known)})"
      )
  for key in KEYS:
    if key not in group:
      raise BadConfig(
        f"{where} lacks {key!r}: every group has {', '.join(KEYS)}"
      )
  patterns = group["patterns"]
  if isinstance(patterns, str) or not patterns:
    raise BadConfig(
      f"{where}.patterns={patterns!r}: expected a list of patterns, such as "
      "['*/bias']"
    )
  _positive(f"{where}.weight_decay", group["weight_decay"])
  _positive(f"{where}.learning_rate_factor", group["learning_rate_factor"])
  every, clip = group.get("every_steps", 1), group.get("clip")
  check_type(f"{where}.every_steps", every, int)
  if every < 1:
    raise BadConfig(f"{where}.every_steps={every}: expected 1 or more")
  check_type(f"{where}.clip", clip, float | None)
  if clip is not None:
    _positive(f"{where}.clip", clip)
  for pattern in patterns:
    if not any(tree.match((pattern,), name) for name in names):
      raise BadConfig(
        f"{where}: no parameter matches {pattern!r}{nearest(pattern, names)} "
        "(a pattern covers a whole path; --dry_run lists the paths)"
      )


def _positive(what: str, value: float) -> None:
  if not value >= 0:
    raise BadConfig(f"{what}={value}: expected 0 or more")
