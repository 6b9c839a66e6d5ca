"""Llama 2 and 3.x, and Mistral, which adds a sliding window.

`rows`, `body` and `rotary` also serve the families that grew out of Llama.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

from aigc_jax.hf.settings import (
  ACTIVATIONS,
  PLAIN,
  THEIR_ACTIVATIONS,
  Settings,
  each_window,
)
from aigc_jax.hf.table import Family, Row
from aigc_jax.layers.position import LONGER

BLOCK = "model.layers.{layer}."


def projection(ours: str, theirs: str, axes: str, bias: str):
  return linear(f"stack/{ours}", f"{BLOCK}{theirs}", axes, bias)


def linear(ours: str, theirs: str, axes: str, bias: str) -> tuple[Row, Row]:
  """The weight and, where the model has one, the bias of a linear layer."""
  return (
    Row(f"{ours}/w", f"{theirs}.weight", axes),
    Row(f"{ours}/bias", f"{theirs}.bias", bias),
  )


def layer_norm(ours: str, theirs: str) -> tuple[Row, Row]:
  """The scale and, where the model has one, the bias of a norm."""
  return (
    Row(f"{ours}/scale", f"{theirs}.weight", "D->D"),
    Row(f"{ours}/bias", f"{theirs}.bias", "D->D"),
  )


def norm(ours: str, theirs: str, letter: str = "D") -> Row:
  return Row(
    f"stack/{ours}/scale", f"{BLOCK}{theirs}.weight", f"{letter}->{letter}"
  )


QUERY_KEY_VALUE = (
  *projection("attention/query", "self_attn.q_proj", "(NH)D->DNH", "(NH)->NH"),
  *projection("attention/key", "self_attn.k_proj", "(KH)D->DKH", "(KH)->KH"),
  *projection("attention/value", "self_attn.v_proj", "(KH)D->DKH", "(KH)->KH"),
)
# Between these stand the norms, which families name differently.
PROJECTIONS = (
  *QUERY_KEY_VALUE,
  *projection("attention/out", "self_attn.o_proj", "D(NH)->NHD", "D->D"),
  *projection("mlp/gate", "mlp.gate_proj", "FD->DF", "F->F"),
  *projection("mlp/up", "mlp.up_proj", "FD->DF", "F->F"),
  *projection("mlp/down", "mlp.down_proj", "DF->FD", "D->D"),
)
ENDS = (
  Row("embed/table", "model.embed_tokens.weight", "VD->VD"),
  Row("norm/scale", "model.norm.weight", "D->D"),
  Row("head/table", "lm_head.weight", "VD->VD"),
)
HEAD_NORMS = (
  norm("attention/norm_query", "self_attn.q_norm", "H"),
  norm("attention/norm_key", "self_attn.k_norm", "H"),
)
NORMS = (
  norm("norm_attention", "input_layernorm"),
  norm("norm_mlp", "post_attention_layernorm"),
)
FOUR_NORMS = (
  norm("norm_attention", "input_layernorm"),
  norm("post_attention", "post_attention_layernorm"),
  norm("norm_mlp", "pre_feedforward_layernorm"),
  norm("post_mlp", "post_feedforward_layernorm"),
)
IGNORED = ("*rotary_emb*.inv_freq",)

# Rotary scalings: kind -> {our argument: their key}.
SCALINGS = {
  "linear": {"factor": "factor"},
  "llama3": {
    "factor": "factor",
    "low_factor": "low_freq_factor",
    "high_factor": "high_freq_factor",
    "original_length": "original_max_position_embeddings",
  },
}
# Others turn by an angle alone; this one makes queries and keys longer too.
LENGTH = "max_position_embeddings"
ORIGINAL = "original_max_position_embeddings"
YARN = {
  "factor": ("factor",),
  "fast": ("beta_fast", 32.0),
  "slow": ("beta_slow", 1.0),
}
KEYS_OF_KIND = ("rope_type", "type")
WIDE, NEAR = "full_attention", "sliding_attention"
# Keys that may stand outside of what slows positions, and their names there.
OUTSIDE = MappingProxyType(
  {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
)
_KINDS = {"default": None, "linear": "linear", "llama3": "llama3"}


def rotary(c: Settings, base: float = 10000.0) -> dict:
  """rotary_base and rotary_scaling, by the older keys or the newer."""
  c.only("partial_rotary_factor", 1, 1.0)
  return _base(c, base) | dict(rotary_scaling=scaling(c, slowing(c)))


def slowing(
  c: Settings, by_window: bool = False, outside: Mapping = OUTSIDE
) -> Settings:
  """What slows rotary planes, by the newer key or, without it, the older.

  by_window: of a family whose newer key may tell it for each kind of layer.
  outside: names of what may stand outside of it.
  BadData where another's does, and where the older says something else beside
  the newer, as where a scaling was added to a file that had none, or leaves
  unsaid what the newer says: readers differ in what counts.
  """
  if "rope_parameters" not in c:
    return c.part("rope_scaling")
  both, older = c.part("rope_parameters"), c.part("rope_scaling")
  wide = both.part(WIDE) if by_window and WIDE in both else both
  for kind in () if by_window else (WIDE, NEAR):
    if kind in both:
      raise both.fault(kind, "none: layers of this family are turned alike")
  told = [key for key, value in older.items() if value is not None]
  # Of layers that are turned alike the older counts alone, in transformers.
  alone = not by_window and dict(older.items())
  asked = [key for key, value in wide.items() if alone and value is not None]
  for key in (*told, *asked):
    said, unsaid = _said(wide, key), c.value(outside.get(key, ""))
    found = _said(older, key)
    if said != (unsaid if found is None else found):
      raise c.fault(
        "rope_scaling",
        f"what rope_parameters says, {key}={said!r}: write the scaling that "
        "is meant into rope_parameters, beside its rope_theta, and remove "
        "rope_scaling",
      )
  return both


def _said(scale: Settings, key: str):
  """The value of a key, and for those of the kind the kind."""
  return _kind(scale) or "default" if key in KEYS_OF_KIND else scale.value(key)


def by_kind(c: Settings) -> tuple[Settings, Settings]:
  """What slows layers without a window, and what turns those with one.

  BadData where the latter are slowed, or heads turned in part: nothing computes
  that here. It also is where what is said of no kind would be passed over.
  """
  wide, near = slowing(c, by_window=True), Settings({}, NEAR)
  if "rope_parameters" in c:
    for key, value in wide.items():
      if value is not None and key not in (WIDE, NEAR):
        raise wide.fault(key, f"none but within {WIDE} and {NEAR}")
    wide, near = wide.part(WIDE), wide.part(NEAR)
  if (_kind(near) or "default") != "default":
    raise near.fault("rope_type", "'default': nothing else is computed here")
  for part in (c, wide, near):
    part.only("partial_rotary_factor", 1, 1.0)
  # What counts is within, where it is said there, and else another length.
  c.only(ORIGINAL, wide.value(ORIGINAL))
  return wide, near


def _base(c: Settings, base: float) -> dict:
  outer = c.number("rope_theta", base)
  return dict(rotary_base=slowing(c).number("rope_theta", outer))


def rotary_or_yarn(c: Settings, head_dim: int, base: float = 1e4) -> dict:
  """As `rotary`, or what a config.json means that asks for YaRN and others.

  With YaRN queries and keys are both longer by attention_factor, so that
  products are by its square.
  """
  scale = slowing(c)
  kind = _kind(scale)
  if kind != "yarn" and kind not in BY_LENGTH:
    return rotary(c, base)
  for part in (c, scale):
    part.only("partial_rotary_factor", 1, 1.0)
  found = any_scaling(c, scale)
  if kind != "yarn":
    return _base(c, base) | dict(rotary_scaling=found)
  longer = found.pop(LONGER)
  return _base(c, base) | dict(
    rotary_scaling=found, attention_scale=longer**2 * head_dim**-0.5
  )


def rotary_in_some(c: Settings, found: Mapping) -> dict:
  """What else is with YaRN where some layers are not turned.

  It makes longer what is turned alone, so not the scores of all layers.
  found: keywords by `plain`, with rotary_layers.
  """
  scale = slowing(c)
  if not found["rotary_layers"] or _kind(scale) != "yarn":
    return {}
  return dict(rotary_scaling=any_scaling(c, scale), attention_scale=0.0)


def rotary_in_part(
  c: Settings,
  head_dim: int,
  *,
  share: float,
  outside: Mapping = OUTSIDE,
) -> dict:
  """As `rotary`, for a model that may turn a part of each head only.

  share: of the head, where it is not said. outside: see `slowing`. What YaRN
  makes longer is that part.
  """
  scale = slowing(c, outside=outside)
  base = c.number(outside["rope_theta"], 10000.0)
  key = "partial_rotary_factor"
  part = c.number(outside[key], share)
  turned = int(head_dim * scale.number(key, part))
  if turned % 2 or not 2 <= turned <= head_dim:
    raise c.fault(key, f"an even part of the {head_dim} components of a head")
  return dict(
    rotary_base=scale.number("rope_theta", base),
    rotary_scaling=any_scaling(c, scale),
    rotary_dim=None if turned == head_dim else turned,
  )


def their_share(k: Mapping) -> float:
  """The part of a head that is turned, so that it is not rounded down."""
  turned = k["rotary_dim"] or k["head_dim"]
  share = turned / k["head_dim"]
  exact = int(k["head_dim"] * share) == turned
  return share if exact else math.nextafter(share, 1.0)


def _kind(scale: Settings) -> str | None:
  """What it is called by the newer key, or the older; None for nothing."""
  key = "rope_type" if "rope_type" in scale else "type"
  found = scale.value(key)
  if found is not None and not isinstance(found, str):
    raise scale.fault(key, "a word, such as 'linear'")
  return found


def any_scaling(c: Settings, scale: Settings) -> dict | None:
  """Our description of the slowing of rotary planes, YaRN's too.

  With YaRN's factor of what is turned in it, and whatever part of a head that
  may be.
  """
  kind = _kind(scale)
  if kind in BY_LENGTH:
    return BY_LENGTH[kind](c, scale)
  if kind != "yarn":
    return _scaling(c, scale)
  found = {ours: scale.number(*theirs) for ours, theirs in YARN.items()}
  if not found["slow"] < found["fast"]:
    raise scale.fault("beta_slow", "less than beta_fast")
  found |= dict(
    original_length=_original(c, scale), whole=scale.flag("truncate", True)
  )
  longer = scale.number("attention_factor", 0.0)
  if not longer:
    names = ("mscale", "mscale_all_dim")
    above, below = (scale.number(name, 0.0, zero=True) for name in names)
    longer = _longer(found["factor"], above if above and below else 1.0)
    if above and below:
      longer /= _longer(found["factor"], below)
  return dict(kind="yarn", **found) | {LONGER: longer}


def _original(c: Settings, scale: Settings) -> int:
  """The length before it was made longer; what stands outside goes first.

  Families differ in what they take for the length where it is not said.
  """
  within = scale.integer(ORIGINAL, 0)
  return c.integer(ORIGINAL, 0) or within or c.integer(LENGTH)


def _dynamic(c: Settings, scale: Settings) -> dict:
  return dict(
    kind="dynamic",
    factor=scale.number("factor"),
    original_length=c.integer(LENGTH),
  )


def _longrope(c: Settings, scale: Settings) -> dict:
  """Factors of each plane; what is turned is longer by how far they reach.

  The square root of 1 + log(reach) / log(original length), where it is not
  said: arXiv:2402.13753, section 3.3, of a reach above 1.
  """
  original = _original(c, scale)
  longer = scale.number("attention_factor", 0.0)
  if not longer:
    reach = scale.number("factor", 0.0) or c.integer(LENGTH) / original
    if reach > 1 and original < 2:
      raise scale.fault(ORIGINAL, "at least 2")
    more = math.log(reach) / math.log(original) if reach > 1 else 0.0
    longer = math.sqrt(1 + more)
  return {
    "kind": "longrope",
    "short": scale.numbers("short_factor"),
    "long": scale.numbers("long_factor"),
    "original_length": original,
    LONGER: longer,
  }


# Those by which positions are turned otherwise where there are many of them.
BY_LENGTH = {"dynamic": _dynamic, "longrope": _longrope, "su": _longrope}


def _longer(factor: float, weight: float) -> float:
  """By how much YaRN makes queries and keys longer, if it is not said."""
  return 1.0 + (0.1 * weight * math.log(factor) if factor > 1 else 0.0)


def their_yarn(k: Mapping) -> dict:
  """`rotary_or_yarn` backwards, for YaRN."""
  found = k["rotary_scaling"]
  scale = k["attention_scale"] or k["head_dim"] ** -0.5
  longer = math.sqrt(scale * k["head_dim"] ** 0.5)
  return dict(
    rope_type="yarn",
    original_max_position_embeddings=found["original_length"],
    truncate=found["whole"],
    attention_factor=found.get(LONGER, longer),
  ) | {theirs: found[ours] for ours, (theirs, *_) in YARN.items()}


def _their_longrope(k: Mapping) -> dict:
  found = k["rotary_scaling"]
  return dict(
    rope_type="longrope",
    short_factor=list(found["short"]),
    long_factor=list(found["long"]),
    original_max_position_embeddings=found["original_length"],
    attention_factor=float(found.get(LONGER, 1.0)),
  )


def _their_dynamic(k: Mapping) -> dict:
  return dict(rope_type="dynamic", factor=k["rotary_scaling"]["factor"])


# Scalings that are told by more than their own numbers.
THEIRS = {
  "yarn": their_yarn,
  "dynamic": _their_dynamic,
  "longrope": _their_longrope,
}


def scaling(c: Settings, scale: Settings) -> dict | None:
  """Our description of the slowing of rotary planes; None for none."""
  scale.only("partial_rotary_factor", 1, 1.0)
  return _scaling(c, scale)


def _scaling(c: Settings, scale: Settings) -> dict | None:
  key = "rope_type" if "rope_type" in scale else "type"
  kind = scale.among(key, _KINDS, "default")
  if kind is None:
    return None
  keys = {o: k for o, k in SCALINGS[kind].items() if k != ORIGINAL}
  found = {ours: scale.number(key) for ours, key in keys.items()}
  if ORIGINAL in SCALINGS[kind].values():
    found["original_length"] = _original(c, scale)
    if not found["low_factor"] < found["high_factor"]:
      raise scale.fault("low_freq_factor", "less than high_freq_factor")
  return dict(kind=kind, **found)


def their_scaling(found: Mapping | None) -> dict | None:
  """`scaling` backwards; what it does not know is left out."""
  if not found or found["kind"] not in SCALINGS:
    return None
  keys = SCALINGS[found["kind"]]
  return dict(rope_type=found["kind"]) | {
    theirs: found[ours] for ours, theirs in keys.items() if ours in found
  }


def body(c: Settings, *, head_dim: int | None, kv_heads: int | None) -> dict:
  """The keywords that all descendants of Llama read alike.

  head_dim and kv_heads are what an absent key means: None for dim / heads and
  for heads.
  """
  dim, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
  return PLAIN | dict(
    vocab=c.integer("vocab_size"),
    layers=c.integer("num_hidden_layers"),
    dim=dim,
    heads=heads,
    kv_heads=c.maybe("num_key_value_heads", kv_heads or heads) or heads,
    head_dim=c.integer("head_dim", head_dim or max(dim // heads, 1)),
    mlp_dim=c.integer("intermediate_size"),
    norm_eps=c.number("rms_norm_eps", 1e-6),
    position_length=c.integer("max_position_embeddings", 2048),
    init_std=c.number("initializer_range", 0.02, zero=True),
  )


def their_body(k: Mapping) -> dict:
  """`body` backwards."""
  return dict(
    vocab_size=k["vocab"],
    num_hidden_layers=k["layers"],
    hidden_size=k["dim"],
    num_attention_heads=k["heads"],
    num_key_value_heads=k["kv_heads"],
    head_dim=k["head_dim"],
    intermediate_size=k["mlp_dim"],
    rms_norm_eps=k["norm_eps"],
    max_position_embeddings=k["position_length"] or 1,
    initializer_range=k["init_std"] or 0.02,
    tie_word_embeddings=k["tied"],
    attention_dropout=0.0,
  )


def divides(k: Mapping) -> list[str]:
  """Newer transformers refuse a width that is no multiple of the heads."""
  if k["dim"] % k["heads"] == 0:
    return []
  return [f"dim={k['dim']} is not a multiple of heads={k['heads']}"]


def plain(
  c: Settings,
  *,
  head_dim: int | None = None,
  kv_heads: int | None = None,
  base: float = 10000.0,
) -> dict:
  """A Llama without biases, of which others differ a little; see `body`."""
  found = unturned(c, head_dim=head_dim, kv_heads=kv_heads)
  return found | rotary_or_yarn(c, found["head_dim"], base)


def unturned(
  c: Settings, *, head_dim: int | None = None, kv_heads: int | None = None
) -> dict:
  """`plain` but for rotary positions."""
  return body(c, head_dim=head_dim, kv_heads=kv_heads) | dict(
    activation=c.among("hidden_act", ACTIVATIONS, "silu"),
    tied=c.flag("tie_word_embeddings", False),
  )


def with_layer_norms(c: Settings) -> dict:
  """The keywords of a model whose norms have a mean and a bias."""
  return dict(
    norm="layer", norm_bias=True, norm_eps=c.number("layer_norm_eps", 1e-5)
  )


def their_plain(k: Mapping) -> dict:
  """`plain` backwards."""
  act = THEIR_ACTIVATIONS.get(k["activation"])
  return their_body(k) | their_rotary(k) | dict(hidden_act=act)


def their_rotary(k: Mapping) -> dict:
  """`rotary` backwards, and the other scalings."""
  found = k["rotary_scaling"]
  tell = THEIRS.get(found["kind"]) if found else None
  told = dict(
    rope_theta=k["rotary_base"],
    rope_scaling=tell(k) if tell else their_scaling(found),
  )
  if tell is _their_dynamic:  # the length from which the base grows is that
    told[LENGTH] = found["original_length"]
  return told


def settings(c: Settings) -> dict:
  """The decoder of a Llama config.json."""
  bias = c.flag("attention_bias", False)
  mlp_bias = c.flag("mlp_bias", False)
  return plain(c) | dict(attention_bias=bias, out_bias=bias, mlp_bias=mlp_bias)


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  biases = dict(attention_bias=k["attention_bias"], mlp_bias=k["mlp_bias"])
  return their_plain(k) | biases


def mistral_settings(c: Settings) -> dict:
  """The decoder of a Mistral config.json; a null window means none."""
  c.only("layer_types")
  window = c.maybe("sliding_window", 4096)
  return plain(c, kv_heads=8) | dict(windows=(window,) if window else ())


def mistral_config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  return their_plain(k) | dict(sliding_window=each_window(k)[0])


LLAMA = Family(
  model_type="llama",
  architecture="LlamaForCausalLM",
  prefix="model.",
  rows=PROJECTIONS + NORMS + ENDS,
  settings=settings,
  config=config,
  ignored=IGNORED,
  limits=divides,
)
MISTRAL = Family(
  model_type="mistral",
  architecture="MistralForCausalLM",
  prefix="model.",
  rows=PROJECTIONS + NORMS + ENDS,
  settings=mistral_settings,
  config=mistral_config,
  ignored=IGNORED,
)
