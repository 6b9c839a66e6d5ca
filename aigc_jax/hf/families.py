"""The families there are, and which of them can express a model."""

from collections.abc import Mapping

from aigc_jax.errors import BadConfig, BadData, choose
from aigc_jax.hf import kinds
from aigc_jax.hf.autoencoder import AUTOENCODER_KL, VQ_MODEL
from aigc_jax.hf.bert import BERT
from aigc_jax.hf.clip import CLIP
from aigc_jax.hf.cohere import COHERE, COHERE2
from aigc_jax.hf.distilbert import DISTILBERT
from aigc_jax.hf.gemma import GEMMA, GEMMA2, GEMMA3
from aigc_jax.hf.gpt2 import GPT2
from aigc_jax.hf.granite import GRANITE
from aigc_jax.hf.llama import LLAMA, MISTRAL
from aigc_jax.hf.marian import MARIAN
from aigc_jax.hf.neox import NEOX
from aigc_jax.hf.olmo import OLMO2, OLMO3
from aigc_jax.hf.phi import PHI, PHI3
from aigc_jax.hf.qwen import QWEN2, QWEN3
from aigc_jax.hf.resnet import RESNET
from aigc_jax.hf.roberta import ROBERTA
from aigc_jax.hf.settings import Settings
from aigc_jax.hf.siglip import SIGLIP
from aigc_jax.hf.smollm import SMOLLM3
from aigc_jax.hf.stablelm import STABLELM
from aigc_jax.hf.t5 import T5
from aigc_jax.hf.table import Family
from aigc_jax.hf.vit import VIT
from aigc_jax.hf.whisper import WHISPER

# By model_type of config.json, of diffusers' by _class_name; an export takes
# the first that fits.
FAMILIES = {
  "gpt2": GPT2,
  "llama": LLAMA,
  "mistral": MISTRAL,
  "qwen2": QWEN2,
  "qwen3": QWEN3,
  "gemma": GEMMA,
  "gemma2": GEMMA2,
  "gemma3_text": GEMMA3,
  "smollm3": SMOLLM3,
  "granite": GRANITE,
  "olmo2": OLMO2,
  "olmo3": OLMO3,
  "phi3": PHI3,
  "gpt_neox": NEOX,
  "stablelm": STABLELM,
  "phi": PHI,
  "cohere": COHERE,
  "cohere2": COHERE2,
  "bert": BERT,
  "roberta": ROBERTA,
  "distilbert": DISTILBERT,
  "t5": T5,
  "marian": MARIAN,
  "vit": VIT,
  "resnet": RESNET,
  "clip": CLIP,
  "siglip": SIGLIP,
  "whisper": WHISPER,
  "AutoencoderKL": AUTOENCODER_KL,
  "VQModel": VQ_MODEL,
}


# Kinds whose config.json has no say in what sees what.
SEE_ALL = ("encoder", "vit", "resnet", "autoencoder", "vq")
# Uses of what reads no text.
WORDLESS = ("image-classification", "image-to-image")


def family_of(config: Mapping, where: str) -> Family:
  """The family that a config.json names, or BadData."""
  named = Settings(config, where)
  kind = named.value("model_type") or named.value("_class_name")
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise BadData(
      f"{where}: model_type={str(kind)[:80]!r} is not one that can be read "
      f"(there are: "
      f"{', '.join(sorted(FAMILIES))})"
    )
  if "quantization_config" in named:
    raise BadData(
      f"{where}: quantised weights are not read; save the model in float32 or "
      "bfloat16"
    )
  # Layers that differ, and what sees what comes after it, in transformers.
  for part in (named, named.part("text_config"), named.part("vision_config")):
    part.only("per_layer_config")
    if FAMILIES[kind].kind not in SEE_ALL:
      part.only("is_causal", True)
  return FAMILIES[kind]


def read_config(family: Family, config: Mapping, where: str) -> dict:
  """The model's keywords that a config.json means.

  dtype, of the computation, is bfloat16 where the weights are, else float32.
  """
  read = Settings(config, where)
  for alias, own in family.aliases.items():
    if alias in read:
      if own in read and read.value(own) != read.value(alias):
        raise read.fault(alias, f"{own}={read.value(own)!r}: it means the same")
      read = read.instead(**{own: read.value(alias)})
  kind = read.value("dtype") or read.value("torch_dtype")
  dtype = "bfloat16" if kind == "bfloat16" else "float32"
  return family.settings(read) | dict(dtype=dtype)


def write_config(family: Family, kwargs: Mapping) -> dict:
  """A config.json for the model, without the ids of special tokens.

  No token is for padding unless that is said: some families have one by
  default, which may lie beyond a vocabulary.
  """
  text = {} if family.pipeline in WORDLESS else {"pad_token_id": None}
  named = dict(
    architectures=[family.architecture], model_type=family.model_type
  )
  if family.library == "diffusers":
    named = {"_class_name": family.model_type}
  return text | named | family.config(kinds.known(family.kind, kwargs))


def objections(family: Family, kwargs: Mapping) -> list[str]:
  """What of a model of its kind it cannot express; nothing if it can.

  A config is written and read back: what comes back different is in the way.
  """
  kwargs = kinds.known(family.kind, kwargs)
  written = write_config(family, kwargs)
  try:
    read = read_config(family, written, "config")
    # Which heads there are, tensors say.
    read |= {head: kwargs[head] for head in family.heads}
    back = kinds.canonical(family.kind, read)
  except BadData:  # not even a config of that family: all of it is in the way
    back = {}
  asked = kinds.canonical(family.kind, kwargs)
  return family.limits(kwargs) + [
    f"{key}={kwargs[key]!r}" for key in asked if asked[key] != back.get(key)
  ]


def choose_family(
  kwargs: Mapping, name: str = "", kind: str = "decoder"
) -> Family:
  """The family `name`, or the first that expresses the model of this kind.

  Raises BadConfig naming the keywords that stand in the way, or for a kind
  that none can express.
  """
  there = {n: f for n, f in FAMILIES.items() if f.kind == kind}
  found = {name: choose(name, there, "family")} if name else there
  if not found:
    raise BadConfig(
      f"a model of kind {kind!r} is none of the architectures of transformers "
      "or diffusers that can be written here: it stays where it is"
    )
  faults = {n: objections(f, kwargs) for n, f in found.items()}
  for family, fault in faults.items():
    if not fault:
      return FAMILIES[family]
  nearest = min(faults, key=lambda n: len(faults[n]))
  alone = len(faults) == 1
  others = "" if alone else "; the other families differ in more"
  raise BadConfig(
    f"no architecture of {there[nearest].library} is this {kind}: "
    f"{FAMILIES[nearest].architecture} comes nearest, in its way stand model."
    f"{', model.'.join(faults[nearest])}{others}"
  )
