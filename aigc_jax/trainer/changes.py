"""What may differ when a run is continued, and what must not."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aigc_jax import tree
from aigc_jax.errors import BadConfig
from aigc_jax.trainer.consumed import TOTALS

# Change what is seen or how it is computed, never what is learned, but for
# rounding: that of 8-bit products goes by what is joined (layers/fp8.py).
HARMLESS = (
  "log/*", "checkpoint/*", "evaluate/*", "mesh/*", "data/root",
  "compute/remat", "compute/unroll", "compute/kernel",
  "compute/fuse_projections", "compute/embed_gradient",
  "compute/steps_per_call", "compute/cast_once", "compute/library",
  "model/parts/*/remat", "model/parts/*/unroll", "model/parts/*/kernel",
  "model/parts/*/fuse_projections", "model/parts/*/embed_gradient",
  "objective/chunk", "init_from", "data/skip_steps*", "branch_from",
  "branch_step",
)  # fmt: skip
# Are no part of the compiled step.
AROUND = (
  "log/*", "checkpoint/*", "evaluate/*", "data/root", "data/skip_steps*",
  "init_from", "branch_from", "branch_step",
)  # fmt: skip
# The state on disk is of another shape or meaning.
IMPOSSIBLE = (
  "model/kind", "model/vocab", "model/layers", "model/dim", "model/heads",
  "model/kv_heads", "model/head_dim", "model/mlp_dim", "model/gated",
  "model/norm", "model/norm_bias", "model/attention_bias", "model/out_bias",
  "model/mlp_bias", "model/post_norm", "model/qk_norm", "model/position",
  "model/pre_norm", "model/qk_norm_joint", "model/shared_norm",
  "model/head_bias",
  "model/position_length", "model/tied", "optim/kind", "optim/mu_dtype",
  # Of encoders, of pairs of towers, of images and of sound.
  "model/types", "model/pooler", "model/token_head", "model/next_sentence",
  "model/encoder_layers", "model/decoder_layers", "model/embed_dim",
  "model/text_layers", "model/text_dim", "model/text_mlp_dim",
  "model/image_layers", "model/image_dim", "model/image_mlp_dim",
  "model/classes", "model/channels", "model/patch", "model/widths",
  "model/blocks", "model/bottleneck", "model/stem", "model/stem_dim",
  "model/sigma", "model/latent", "model/codes", "model/bins",
  "model/projects",
)  # fmt: skip
PART = re.compile(r"model/parts/[^/]+/")  # one has the keys of a model
DATA = ("data/*",)
# Places: what lies there is compared by what it holds, not by its name.
PLACES = ("data/path", "data/validation_path", "data/tokenizer", "frozen/*")
WORDS = ("bytes", "sentencepiece")  # tokenizers that are no places
# What a run did whose config is from before there was such a key.
BEFORE = {
  "compute/products": "plain", "compute/embed_gradient": "auto",
  "compute/library": "xla",
  "objective/logits": "float32", "data/validation_path": None,
  "model/pre_norm": True, "model/qk_norm_joint": False,
  "model/parallel": False, "model/shared_norm": False,
  "model/head_bias": False, "model/rotary_layers": [],
  "model/parametrization": "standard",
  "data/augment/speed": 0, "data/augment/gain": 0.0, "data/augment/times": 0,
  "data/augment/time_width": 100, "data/augment/time_share": 1.0,
  "data/augment/bands": 0, "data/augment/band_width": 27,
}  # fmt: skip


@dataclass(frozen=True)
class Change:
  """One key whose value differs; None where a side lacks it."""

  key: str
  old: object
  new: object

  def __str__(self) -> str:
    return f"{self.key}: {self.old!r} -> {self.new!r}"


def changes(old: Mapping, new: Mapping) -> list[Change]:
  """The keys in which two configs differ, in order of their names."""
  a, b = (_budget(BEFORE | _leaves(config)) for config in (old, new))
  a, b = _without_begun(a, b), _without_begun(b, a)
  return [
    Change(key.replace("/", "."), _value(a, key), _value(b, key))
    for key in sorted(a.keys() | b.keys())
    if _value(a, key) != _value(b, key)
  ]


def _without_begun(leaves: Mapping, other: Mapping) -> dict:
  """Those without the empty sections that have keys in the other config."""
  return {
    key: value
    for key, value in leaves.items()
    if value != {} or not any(k.startswith(f"{key}/") for k in other)
  }


def before(key: str, otherwise: object = None) -> object:
  """What a run did that lacks "section/key"; a part is a model of its own."""
  if key.startswith("model/parts/"):
    key = f"model/{key.split('/')[-1]}"
  return BEFORE.get(key, otherwise)


def _value(leaves: Mapping, key: str) -> object:
  return leaves[key] if key in leaves else before(key)


def _budget(leaves: dict) -> dict:
  """The same with None where no total is given, and for steps where one is.

  Runs of before had 0 for none, and the steps that the total came to.
  """
  totals = {name: leaves.get(name) or None for name in TOTALS}
  steps = {"steps": None} if any(totals.values()) else {}
  return leaves | totals | steps


def _leaves(config: Mapping, prefix: str = "") -> dict:
  """{"model/dim": 128}; lists are one value, except lists of sections."""
  found = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      found |= _leaves(value, f"{prefix}{key}/")
    else:
      found[f"{prefix}{key}"] = value
  return found


def check(
  found: Iterable[Change], allowed: Iterable[str], allow_data: bool
) -> list[Change]:
  """The changes to journal; raises BadConfig with all that stand in the way.

  `allowed` names keys that may change, as --allow_change does. Data that lies
  elsewhere is no change by itself: `data_changes` compares what is read.
  """
  found, allowed = list(found), set(allowed)
  impossible, refused, data = [], [], []
  for change in found:
    path = change.key.replace(".", "/")
    if harmless(change):
      continue
    if fits_never(change.key):
      impossible.append(change)
    elif tree.match(DATA, path):
      if not allow_data:
        data.append(change)
    elif change.key not in allowed:
      refused.append(change)
  if impossible:
    raise BadConfig(
      "this work directory holds a run whose state does not fit the config; "
      "use another --workdir:\n" + _listed(impossible + refused + data)
    )
  if refused or data:
    ways = []
    if refused:
      keys = ",".join(change.key for change in refused)
      ways.append(f"--allow_change={keys}")
    if data:
      ways.append("--allow_data_change")
    raise BadConfig(
      "this work directory holds a run with another config; use another "
      f"--workdir, or {' '.join(ways)} to go on from it:\n"
      + _listed(refused + data)
    )
  return found


def harmless(change: Change) -> bool:
  """Whether what is learned stays the same."""
  path = change.key.replace(".", "/")
  return tree.match(HARMLESS, path) or moved(change)


def compiled(change: Change) -> bool:
  """Whether a key is a part of the compiled step, as the schedule's are."""
  return not (tree.match(AROUND, change.key.replace(".", "/")) or moved(change))


def fits_never(key: str) -> bool:
  """Whether a state is of another shape or meaning once this key differs."""
  path = PART.sub("model/", key.replace(".", "/"))
  return tree.match(IMPOSSIBLE, path)


def moved(change: Change) -> bool:
  """Whether only the place differs where the run's data or a part lies."""
  old, new = change.old, change.new
  if tree.match(PLACES, change.key.replace(".", "/")):
    return all(x and isinstance(x, str) and x not in WORDS for x in (old, new))
  if change.key != "data.sources" or not (old and new):
    return False
  return [_placeless(x) for x in old] == [_placeless(x) for x in new]


def _placeless(source: Mapping) -> dict:
  return {name: x for name, x in source.items() if name != "path"}


def _listed(found: Iterable[Change]) -> str:
  return "\n".join(f"  {change}" for change in found)


def data_changes(
  meta: Mapping | None,
  prints: Mapping[str, str],
  entries: Mapping[str, str],
  allowed: bool,
  since: str,
) -> dict[str, str]:
  """{what: fingerprint} of the data that was other `since` something.

  meta: of a checkpoint, or the record of a run; None for no run. prints:
  fingerprints of the training data and of the held-out sets now. entries:
  hashes of how the held-out sets are configured; one that was configured
  otherwise then is another set. Raises BadConfig unless `allowed`.
  """
  if meta is None:
    return {}
  saved = {}
  if "data_fingerprint" in meta:
    saved["data"] = meta["data_fingerprint"]
  then = meta.get("heldout_entries", {})  # older checkpoints have none
  for what, old in meta.get("heldout_fingerprints", {}).items():
    if then.get(what) == entries.get(what):
      saved[what] = old
  was = {
    what: old for what, old in saved.items() if prints.get(what, old) != old
  }
  if was and not allowed:
    lines = (
      f"\n  {what}: {old[:12]} -> {prints[what][:12]}"
      for what, old in was.items()
    )
    raise BadConfig(
      f"the data has changed since {since} (changed source files or "
      "tokenizer; of .features and .recogniser, the network that judges; of "
      ".texts, what scores read beside the tokens; of data.special, what masks "
      "and ends a text, as the tokenizer's folder says). "
      "Restore them, or fork with --allow_data_change. "
      f"The fingerprints:{''.join(lines)}"
    )
  return was
