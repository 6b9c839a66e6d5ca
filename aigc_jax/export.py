"""Writes a run as a folder that transformers loads, and checks that it is one.

  python -m aigc_jax.export --workdir=DIR --out=OUT
  python -m aigc_jax.export --workdir=DIR --out=OUT --step=2000 --dtype=bfloat16

OUT gets config.json, generation_config.json, model.safetensors (numbered files
and an index beyond --shard_size), tokenizer.json, tokenizer_config.json and a
model card; of a VAE it is what diffusers loads. It is written aside, read back
and compared with the run, and only then renamed to OUT.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from aigc_jax import command, files, hf, run, tree
from aigc_jax.errors import BadConfig, BadData, StorageFailure
from aigc_jax.hf import card, families, kinds, outgoing, vocabulary
from aigc_jax.hf.settings import FREE
from aigc_jax.hf.table import Family
from aigc_jax.layers import mel
from aigc_jax.layers.report import STATS
from aigc_jax.trainer import journal

CLOSE = 1e-4  # of logits and hidden states in float32
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
# Codes are multiplied by the one after the other was subtracted.
SCALING = ("scaling_factor", "shift_factor")


def export(
  params,
  kwargs: Mapping,
  tokenizer,
  out: str | Path,
  *,
  length: int,
  kind: str = "decoder",
  step: int = 0,
  dtype: str = "float32",
  shard_bytes: int = 5 * 10**9,
  config: Mapping | None = None,
  record: Mapping | None = None,
  metrics: Mapping | None = None,
  scaling: Mapping[str, float] = MappingProxyType({}),
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Writes a model's parameters and tokenizer to the folder `out`.

  params: `kinds.joined` where the model has stats. kwargs: of the model of this
  kind. tokenizer: None for a model that reads no text. length: what it was
  trained to read, told as its longest where its positions set no limit and no
  larger one is named.
  config, record, metrics: for the model card (see hf.card). scaling: see
  `scaling_of`. Returns the family, the bytes and the largest differences of
  what the model says. Raises BadConfig where no family expresses the model or
  `out` exists, BadData where what was written is not the same; nothing is left
  behind then.
  """
  out = files.expanded(out).absolute()
  outgoing.dtype_of(dtype)
  family = hf.choose_family(kwargs, kind=kind)
  kwargs = kinds.KINDS[kind].settled(kwargs, length)
  if tokenizer is not None and tokenizer.text_vocab > kwargs["vocab"]:
    raise BadConfig(
      f"the tokenizer makes {tokenizer.text_vocab} ids, the model model.vocab="
      f"{kwargs['vocab']}: they do not belong together"
    )
  if tokenizer is not None:
    _check_padding(tokenizer, family, kwargs)
  _check_new(out)
  if tokenizer is not None:
    longest = kwargs.get("position_length") or length
    made = vocabulary.files(tokenizer, longest, family) | sound_files(kwargs)
  else:
    made = {}
  made |= image_files((config or {}).get("data") or {}, family)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.folder_aside(out) as aside:
      hf.write(
        aside, params, kwargs, family=family, dtype=dtype,
        shard_bytes=shard_bytes,
        special=scaling if tokenizer is None else tokenizer.special,
      )  # fmt: skip
      made["README.md"] = card.write(
        name=out.name,
        architecture=_architecture(family, kwargs),
        library=family.library,
        pipeline=family.pipeline,
        dtype=dtype,
        parameters=tree.count(kinds.parted(params)["params"]),
        step=step,
        config=config or {},
        record=record or {},
        metrics=metrics or {},
      )
      for name, text in made.items():
        files.write_text(aside / name, text)
      if tokenizer is not None and not vocabulary.verify(tokenizer, made):
        say("the tokenizer files are not compared: pip install 'aigc_jax[hf]'")
      found = compare(aside, params, kwargs, dtype, kind)
      if tokenizer is not None:
        settle_class(tokenizer, aside, made, family, out, say)
      found |= dict(
        family=family.model_type,
        bytes=sum(f.stat().st_size for f in aside.iterdir()),
      )
      _settle(aside, out)
  except OSError as error:
    raise StorageFailure(f"--out={out} cannot be written: {error}") from error
  return found


def _check_new(out: str | Path) -> None:
  run.check_out(out)
  path = files.expanded(out).absolute()
  if os.path.lexists(path):
    raise BadConfig(
      f"--out={path} exists: name a folder that does not, or delete it"
    )


def image_files(data: Mapping, family: Family) -> dict[str, str]:
  """preprocessor_config.json: how a run's images were made for its model.

  data: config.data of the run; nothing where it is not known to be of images.
  """
  if data.get("kind") not in ("images", "captions"):
    return {}
  run.check_data({"data": data})  # a work directory may be of a stranger
  size = data["image_size"]
  kinds_of = {
    "vit": "ViTImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
  }
  if family.model_type not in kinds_of:
    return {}
  sides = {"height": size, "width": size}
  own: dict = {"size": sides}
  if family.model_type == "resnet":
    # The whole is 1 / crop_pct larger, and cut to the middle.
    own = {"size": {"shortest_edge": size}, "crop_pct": data["crop"]}
  if family.model_type == "clip":
    whole = round(size / data["crop"])
    own = {"size": {"shortest_edge": whole}, "crop_size": sides}
    own |= {"do_center_crop": True, "do_convert_rgb": data["channels"] == 3}
  found = dict(
    image_processor_type=kinds_of[family.model_type],
    do_normalize=True,
    do_rescale=True,
    do_resize=True,
    image_mean=list(data["mean"]),
    image_std=list(data["std"]),
    resample=3,
    rescale_factor=1 / 255,
    **own,
  )
  return {"preprocessor_config.json": json.dumps(found, indent=2) + "\n"}


def sound_files(kwargs: Mapping) -> dict[str, str]:
  """preprocessor_config.json: how sound is made for a model that hears.

  Nothing where it hears no whole seconds, for which transformers has no words.
  """
  seconds, bins = kwargs.get("seconds"), kwargs.get("bins")
  if not seconds or not bins or seconds != int(seconds):
    return {}
  found = dict(
    feature_extractor_type="WhisperFeatureExtractor",
    processor_class="WhisperProcessor",
    feature_size=bins,
    sampling_rate=mel.RATE,
    hop_length=mel.HOP,
    n_fft=mel.WINDOW,
    chunk_length=int(seconds),
    padding_value=0.0,
    return_attention_mask=False,
  )
  return {"preprocessor_config.json": json.dumps(found, indent=2) + "\n"}


def _architecture(family: Family, kwargs: Mapping) -> str:
  """The class that reads the folder."""
  said = families.write_config(family, kwargs)
  (name,) = said.get("architectures", [family.architecture])
  return name


def _check_padding(tokenizer, family: Family, kwargs: Mapping) -> None:
  """Refuses a family whose padding is what this tokenizer has text for."""
  id = families.write_config(family, kwargs)["pad_token_id"]
  special = tokenizer.special_words.values()
  if id is None or id in special or id >= tokenizer.text_vocab:
    return
  raise BadConfig(
    f"{family.architecture} takes id {id} for padding and counts no position "
    f"there, and the tokenizer has text for it ({tokenizer.decode([id])!r}): "
    "train with a tokenizer whose padding it is, or with "
    "--config.model.position_start=0, as BERT has it"
  )


def settle_class(tokenizer, folder: Path, made, family, out, say) -> None:
  """Names a class for the tokenizer with which AutoTokenizer gives our ids.

  out: what the folder will be called. Says where it had to be another class,
  and where there is none.
  """
  found = vocabulary.auto(tokenizer, folder)
  if found is None:
    return
  if found.apart:
    other = vocabulary.plain_class(made, family, found.special)
    name = "tokenizer_config.json"
    files.write_text(folder / name, other[name])
    again = vocabulary.auto(tokenizer, folder)
    if not again.apart:
      say(
        f"note: the tokenizer is written as {vocabulary.PLAIN}: transformers "
        f"would make {found.kind} of it anew, which gives other ids to "
        f"{len(found.apart)} of {found.texts} texts"
      )
      return
    files.write_text(folder / name, made[name])
    say(
      f"note: AutoTokenizer makes {found.kind} of this folder, which gives "
      f"other ids than the run's tokenizer to {len(found.apart)} of "
      f"{found.texts} texts ({found.apart[0][:40]!r}); load it as "
      f"{vocabulary.PLAIN}.from_pretrained({str(out)!r})"
    )


def _settle(aside: Path, out: Path) -> None:
  """Everything on the disk, then the name."""
  for path in [*aside.iterdir(), aside]:
    files.sync(path)
  os.rename(aside, out)
  files.sync(out.parent)


def compare(
  folder: Path, params, kwargs: Mapping, dtype: str, kind: str = "decoder"
) -> dict:
  """Reads a folder back; BadData unless it is this model, to the bit.

  Parameters must be those of the run, rounded to `dtype`, and what the model
  says of a probe the same: logits, and hidden states where it gives some.
  Returns how far these, and those of the unrounded run, are away.
  """
  found = hf.load(folder)
  canonical = functools.partial(kinds.canonical, kind)
  same_kind = found.family.kind == kind
  if not same_kind or canonical(found.kwargs) != canonical(kwargs):
    raise BadData(f"config.json, read back, describes another {kind}")
  rounded = jax.tree.map(
    lambda x: x.astype(jnp.dtype(dtype)).astype(x.dtype), params
  )
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
  )
  laid = jax.tree.map(lambda x: x.sharding, params)
  back = hf.read_params(found, abstract, laid)
  for (path, a), b in zip(
    tree.flat(rounded).items(), jax.tree.leaves(back), strict=True
  ):
    if path in found.family.unsaid:
      continue
    if not bool(jnp.array_equal(a, b)):
      raise BadData(f"{path}, read back, differs from the run's (or holds NaN)")
  batch = kinds.KINDS[kind].probe(kwargs, np.random.default_rng(0))
  # Computed in the run's way: another kernel would round differently.
  decided = canonical(kwargs)
  again = found.kwargs | {
    k: x for k, x in kwargs.items() if k in FREE or k not in decided
  }
  theirs = kinds.outputs(kind, again, back, batch)
  same = _apart(theirs, kinds.outputs(kind, kwargs, rounded, batch))
  whole = _apart(theirs, kinds.outputs(kind, kwargs, params, batch))
  if not same <= CLOSE:
    raise BadData(f"what the model says, read back, differs by {same:.3g}")
  return dict(difference=same, rounding=whole)


def _apart(a: list[np.ndarray], b: list[np.ndarray]) -> float:
  """The largest difference; of whole numbers the share of those that differ."""
  return max(
    float(np.mean(x != y) if x.dtype.kind in "iub" else np.max(np.abs(x - y)))
    for x, y in zip(a, b, strict=True)
  )


def bytes_of(text: str) -> int:
  """How many bytes "5GB", "200MB" or "1000" are."""
  parts = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text.strip())
  unit = parts and UNITS.get(parts[2].upper())
  if not unit or not int(parts[1]):
    raise BadConfig(
      f"--shard_size={text!r}: expected a number of bytes such as 5GB or 200MB"
    )
  return int(parts[1]) * unit


def last_known(workdir: Path, step: int) -> dict:
  """Each metric of a run as last written at or before a step."""
  found: dict = {}
  for row in journal.rows(workdir / journal.METRICS):
    if row.get("step", step + 1) <= step:
      found |= row
  return found


def length_of(config: Mapping, tokenizer) -> int:
  """How much a run's model reads: what it was trained on, or its origin was.

  A folder that a run began from leaves its config.json with its tokenizer.
  """
  trained = config["data"].get("length", 0)
  if tokenizer is None or not config["init_from"] or tokenizer.kind != "hf":
    return trained
  origin = json.loads(tokenizer.beside.get("config.json", b"{}"))
  return max(trained, origin.get("max_position_embeddings") or 0)


def export_run(
  where: str,
  out: str,
  *,
  step: int | None,
  dtype: str,
  shard_bytes: int,
  weights: str = "raw",
  part: str = "",
) -> dict:
  """Exports a work directory, or "hf:FOLDER" once more."""
  _check_new(out)  # before what takes long
  whole = run.load(
    where, step=step, weights=weights,
    suits=lambda _, config: _check_family(where, config, part),
  )  # fmt: skip
  loaded = run.part_of(whole, part) if part else whole
  model = run.keywords(loaded.config)
  kind = model.pop("kind")
  folder = files.expanded(where)
  trained = run.hf_folder(where) is None
  if trained:
    run.check_data(loaded.config)
  has_record = trained and (folder / "run.json").is_file()
  with jax.set_mesh(loaded.mesh):
    return export(
      kinds.joined({"params": loaded.params, STATS: _stats(loaded)}),
      model,
      loaded.tokenizer,
      out,
      kind=kind,
      length=length_of(loaded.config, loaded.tokenizer) if trained else 0,
      step=loaded.step,
      dtype=dtype,
      shard_bytes=shard_bytes,
      config=loaded.config,
      record=run.provenance_in(folder) if has_record else {},
      metrics=last_known(folder, loaded.step) if trained else {},
      scaling=scaling_of(whole) if kind == "vae" else {},
    )


def _check_family(where: str, config: Mapping, part: str) -> None:
  """BadConfig for what no family expresses, before it is read."""
  config = run.config_of_part(where, config, part) if part else config
  model = run.keywords(config)
  kind = model.pop("kind")
  if kind not in kinds.KINDS:
    parts = run.parts_in(config["model"]).items()
    known = [name for name, own in parts if own["kind"] in kinds.KINDS]
    raise BadConfig(
      f"{where} holds a model of kind {kind!r}, which no family of "
      f"transformers or diffusers is written for here (kinds that are: "
      f"{', '.join(kinds.KINDS)}): use it by generate and evaluate"
      + "".join(f", or export its --part={name}" for name in known)
    )
  hf.choose_family(model, kind=kind)
  command.tell_reading(where)


def scaling_of(whole: run.Loaded) -> dict[str, float]:
  """How codes of a VAE are scaled by what draws them, as diffusers writes it.

  What an AutoencoderKL's own folder says of it, or what a latent model has
  found or been told; of a VAE by itself nothing is known, and diffusers then
  takes what Stable Diffusion has.
  """
  folder = run.hf_folder(whole.name)
  if folder is not None:
    said = files.read_json(files.expanded(folder) / "config.json")
    found = {key: said.get(key) for key in SCALING}
    return {k: v for k, v in found.items() if type(v) in (int, float)}
  model = whole.config["model"]
  if model["kind"] != "latent":
    return {}
  scale = model["scale"]
  if scale is None:
    scale = float(np.asarray(_stats(whole)["scale"])[0])
  return dict(zip(SCALING, (scale, model["shift"]), strict=True))


def _stats(loaded: run.Loaded):
  """What no gradient moves, if the model has some."""
  return None if loaded.fixed is None else loaded.fixed.stats


def main() -> None:
  """The command."""
  values = flags.FLAGS
  if not values.workdir or not values.out:
    raise BadConfig("--workdir=DIR and --out=OUT are needed")
  if jax.process_count() > 1:
    raise BadConfig("export is the work of one process")
  found = export_run(
    values.workdir,
    values.out,
    step=values.step,
    dtype=values.dtype,
    shard_bytes=bytes_of(values.shard_size),
    weights=values.weights,
    part=values.part,
  )
  print(
    f"{values.out}: {hf.FAMILIES[found['family']].architecture}, "
    f"{found['bytes']:,} bytes in {values.dtype}; read back, its outputs "
    f"differ from the run's by {found['rounding']:.2g}"
  )


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_string("workdir", "", "of the run, or hf:FOLDER")
  flags.DEFINE_string("out", "", "the folder to write; it must not exist")
  flags.DEFINE_integer("step", None, "of the checkpoint; the last by default")
  flags.DEFINE_string("weights", "raw", "or average, where a run keeps one")
  flags.DEFINE_string(
    "part", "", "of a model of several roles, such as student"
  )
  flags.DEFINE_string("dtype", "float32", "of the weights: float32, bfloat16")
  flags.DEFINE_string("shard_size", "5GB", "the most bytes of one file")


if __name__ == "__main__":
  define_flags()
  command.main(main, alone=True)
