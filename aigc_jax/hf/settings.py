"""Settings: a config.json, each key read once, typed and bounded."""

from collections.abc import Iterator, Mapping

from aigc_jax.errors import BadData
from aigc_jax.layers.position import LONGER
from aigc_jax.models import COMPUTE
from aigc_jax.models.decoder import resolved

REQUIRED = object()
LARGEST = 2**31 - 1

# Names of activations, theirs to ours and back.
ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "relu2": "relu2",
}
THEIR_ACTIVATIONS = {
  "silu": "silu",
  "gelu": "gelu",
  "gelu_tanh": "gelu_pytorch_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "relu2": "relu2",
}

# Keywords of the decoder that a config.json does not decide, and the values
# of the others for a plain decoder; a family names where it differs.
PLAIN = dict(
  activation="silu",
  gated=True,
  norm="rms",
  norm_offset=0.0,
  norm_bias=False,
  attention_bias=False,
  out_bias=False,
  mlp_bias=False,
  post_norm=False,
  qk_norm=False,
  position="rotary",
  rotary_base=10000.0,
  rotary_local_base=0.0,
  rotary_scaling=None,
  windows=(),
  attention_scale=0.0,
  attention_softcap=0.0,
  logit_softcap=0.0,
  embed_scale=False,
  dropout=0.0,
  remat="none",
  unroll=1,
  kernel="auto",
  fuse_projections=True,
  embed_gradient="auto",
  products="plain",
)
# Keywords that the decoder has since later, and what they were before.
LATER = dict(
  embed_multiplier=None,
  residual_multiplier=None,
  logit_multiplier=None,
  rotary_layers=(),
  rotary_dim=None,
  pre_norm=True,
  qk_norm_joint=False,
  parallel=False,
  shared_norm=False,
  head_bias=False,
  parametrization="standard",
  base_dim=None,
  base_layers=None,
  base_heads=None,
  base_kv_heads=None,
  base_head_dim=None,
  base_mlp_dim=None,
)
PLAIN |= LATER
MULTIPLIERS = ("embed_multiplier", "residual_multiplier", "logit_multiplier")
# What changes how a model is trained or computed, not what it is.
FREE = ("dropout", "init_std", *COMPUTE)


class Settings:
  """The values of a config.json; a wrong one is a BadData naming the key."""

  def __init__(self, values: Mapping, where: str):
    self._values, self._where = values, where

  def __contains__(self, key: str) -> bool:
    return self._values.get(key) is not None

  def named(self, key: str) -> bool:
    """Whether the key is there, be it null."""
    return key in self._values

  def value(self, key: str):
    """The value as it is, None where there is none."""
    return self._values.get(key)

  def instead(self, **values) -> "Settings":
    """The same, but for these keys."""
    return Settings({**self._values, **values}, self._where)

  def items(self) -> Iterator[tuple]:
    """All keys with their values as they are."""
    return iter(self._values.items())

  def _take(self, key: str, default):
    value = self._values.get(key)
    if value is not None:
      return value
    if default is REQUIRED:
      raise BadData(f"{self._where} has no {key!r}")
    return default

  def fault(self, key: str, expected: str) -> BadData:
    """What is wrong with the value of a key."""
    return BadData(
      f"{self._where}: {key}={str(self._values.get(key))[:80]!r}, expected "
      f"{expected}"
    )

  def integer(self, key: str, default=REQUIRED, least: int = 1):
    """A whole number from `least` to 2**31 - 1, or the default."""
    value = self._take(key, default)
    if value is default:
      return value
    if type(value) is not int or not least <= value <= LARGEST:
      raise self.fault(key, f"a whole number from {least}")
    return value

  def maybe(self, key: str, default: int) -> int | None:
    """A whole number, None for null, the default where there is no key."""
    return self.integer(key, None) if self.named(key) else default

  def number(self, key: str, default=REQUIRED, zero: bool = False) -> float:
    """A finite number above 0, or 0 where that is legal, or the default."""
    value = self._take(key, default)
    if value is default:
      return value
    real = type(value) in (int, float)
    if not real or not 0 <= value < 1e30 or not (value or zero):
      raise self.fault(key, "a finite number above 0")
    return float(value)

  def numbers(self, key: str) -> tuple[float, ...]:
    """A list of finite numbers above 0."""
    value = self._take(key, REQUIRED)
    legal = isinstance(value, list) and all(
      type(x) in (int, float) and 0 < x < 1e30 for x in value
    )
    if not legal or not value:
      raise self.fault(key, "a list of finite numbers above 0")
    return tuple(map(float, value))

  def flag(self, key: str, default=REQUIRED) -> bool:
    """true or false, or the default."""
    value = self._take(key, default)
    if type(value) is not bool:
      raise self.fault(key, "true or false")
    return value

  def among(self, key: str, table: Mapping, default=REQUIRED):
    """What `table` says for the value."""
    value = self._take(key, default)
    if not isinstance(value, str) or value not in table:
      raise self.fault(key, f"one of {', '.join(table)}")
    return table[value]

  def only(self, key: str, *legal) -> None:
    """BadData where the key has a value that our layers do not compute."""
    value = self._values.get(key)
    if value is not None and value not in legal:
      words = " or ".join(map(repr, legal)) or "none"
      raise self.fault(key, f"{words}: nothing else is computed here")

  def part(self, key: str) -> "Settings":
    """The object at `key`, empty where there is none."""
    value = self._values.get(key)
    if value is not None and not isinstance(value, dict):
      raise self.fault(key, "an object")
    return Settings(value or {}, f"{self._where}: {key}")

  def words(self, key: str, table: Mapping, count: int) -> list | None:
    """A list of `count` words by `table`, or None where there is none."""
    value = self._values.get(key)
    if value is None:
      return None
    legal = isinstance(value, list) and all(
      isinstance(v, str) and v in table for v in value
    )
    if not legal or len(value) != count:
      raise self.fault(
        key, f"a list of {count}, each one of {', '.join(table)}"
      )
    return [table[v] for v in value]


def windows_of(sizes: list[int | None]) -> tuple[int | None, ...]:
  """The shortest pattern that, repeated, gives the window of each layer."""
  return pattern_of(sizes) if any(sizes) else ()


def each_window(kwargs: Mapping) -> list[int | None]:
  """The window of each layer of a decoder, None where it has none."""
  pattern = tuple(kwargs["windows"])
  if not any(pattern):
    pattern = (None,)
  return [pattern[i % len(pattern)] or None for i in range(kwargs["layers"])]


def each_turned(kwargs: Mapping) -> list[bool]:
  """Of each layer of a decoder, whether its queries and keys are turned."""
  pattern = tuple(kwargs["rotary_layers"]) or (True,)
  return [bool(pattern[i % len(pattern)]) for i in range(kwargs["layers"])]


def pattern_of(values: list) -> tuple:
  """The shortest pattern that, repeated, gives the values."""
  for length in range(1, len(values)):
    if all(v == values[i % length] for i, v in enumerate(values)):
      return tuple(values[:length])
  return tuple(values)


def canonical(kwargs: Mapping) -> dict:
  """What of a decoder's keywords decides its function, in one spelling."""
  kwargs = resolved(LATER | dict(kwargs))
  k = {key: value for key, value in kwargs.items() if key not in FREE}
  any_window = any(kwargs["windows"])
  k["windows"] = tuple(each_window(kwargs)) if any_window else ()
  k["head_dim"] = kwargs["head_dim"] or kwargs["dim"] // kwargs["heads"]
  k["attention_scale"] = kwargs["attention_scale"] or k["head_dim"] ** -0.5
  if k["position"] != "learned":
    k["position_length"] = 0
  turned = each_turned(kwargs)
  k["rotary_layers"] = () if all(turned) else tuple(turned)
  if k["rotary_dim"] == k["head_dim"]:
    k["rotary_dim"] = None
  if k["position"] != "rotary":
    k |= dict(rotary_base=0.0, rotary_scaling=None, rotary_local_base=0.0)
    k |= dict(rotary_layers=(), rotary_dim=None)
  k["rotary_scaling"] = dict(k["rotary_scaling"] or {})
  if k["rotary_scaling"].get(LONGER) == 1:
    del k["rotary_scaling"][LONGER]
  # Whoever writes 0.0 for "none" and whoever writes None mean the same.
  for key in ("rotary_local_base", "attention_softcap", "logit_softcap"):
    k[key] = k[key] or 0.0
  for key in MULTIPLIERS:
    k[key] = float(k[key] or 1.0)
  same = k["rotary_local_base"] == k["rotary_base"] and not k["rotary_scaling"]
  if same or not any(k["windows"]):
    k["rotary_local_base"] = 0.0
  return {key: _rounded(value) for key, value in k.items()}


def _rounded(value):
  """Numbers by their first nine digits: a square root comes back rounded."""
  if isinstance(value, float):
    return float(f"{value:.9g}")
  if isinstance(value, dict):
    return {key: _rounded(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return tuple(map(_rounded, value))
  return value
