"""The model card of an export: README.md, with where the weights come from."""

import json
from collections.abc import Mapping

from aigc_jax.terminal import counted

# What of the record of a run goes into its card, and under which words.
RECORD = {
  "started": "started",
  "config_sha256": "config (sha256)",
  "data_fingerprint": "data fingerprint",
  "tokenizer_fingerprint": "tokenizer fingerprint",
}


# How it is used, by what transformers calls its use, or of some architectures.
USES = {
  "text-generation": (
    "```python\nfrom transformers import pipeline\n\n"
    'generate = pipeline("text-generation", model="PATH_OF_THIS_FOLDER")\n'
    'print(generate("Once", max_new_tokens=20)[0]["generated_text"])\n```\n'
  ),
  "image-classification": (
    "```python\nfrom transformers import pipeline\n\n"
    'tell = pipeline("image-classification", model="PATH_OF_THIS_FOLDER")\n'
    'print(tell("image.png")[0]["label"])\n```\n'
  ),
  "zero-shot-image-classification": (
    "```python\nfrom transformers import pipeline\n\n"
    'tell = pipeline("zero-shot-image-classification", '
    'model="PATH_OF_THIS_FOLDER")\n'
    'print(tell("image.png", candidate_labels=["a cat", "a dog"]))\n```\n'
  ),
  "image-to-image": (
    "```python\nfrom diffusers import AutoencoderKL\n\n"
    'vae = AutoencoderKL.from_pretrained("PATH_OF_THIS_FOLDER")\n'
    "codes = vae.encode(images).latent_dist.mean  # of pixels from -1 to 1\n"
    "images = vae.decode(codes).sample\n```\n"
  ),
  "VQModel": (
    "```python\nfrom diffusers import VQModel\n\n"
    'vq = VQModel.from_pretrained("PATH_OF_THIS_FOLDER")\n'
    "vectors = vq.encode(images).latents  # of pixels from -1 to 1\n"
    "codes = vq.quantize(vectors)[2][2]\n"
    "images = vq.decode(vectors).sample\n```\n"
  ),
  "fill-mask": (
    "```python\nfrom transformers import pipeline\n\n"
    'fill = pipeline("fill-mask", model="PATH_OF_THIS_FOLDER")\n'
    'text = f"import {fill.tokenizer.mask_token}"\n'
    'print(fill(text)[0]["sequence"])\n```\n'
  ),
}


def write(
  *,
  name: str,
  architecture: str,
  library: str,
  pipeline: str,
  dtype: str,
  parameters: int,
  step: int,
  config: Mapping,
  record: Mapping,
  metrics: Mapping,
) -> str:
  """The card as Markdown.

  config: of the run, by section. record: its run.json, or nothing. metrics:
  {name: value} as last known at `step`, or nothing.
  """
  parts = [
    f"---\nlibrary_name: {library}\npipeline_tag: {pipeline}\n"
    "tags:\n- aigc_jax\n---\n",
    f"# {name}\n",
    f"`{architecture}` with {parameters:,} parameters in {dtype}, exported by "
    f"aigc_jax after {counted(step, 'step')}.\n",
    USES.get(architecture) or USES.get(pipeline, ""),
  ]
  if metrics:
    parts += ["## What was measured\n", _metrics(metrics)]
  parts += ["## Where it comes from\n", _provenance(record)]
  if config:
    text = json.dumps(config, indent=1)
    parts += ["## Configuration\n", f"```json\n{text}\n```\n"]
  return "\n".join(part for part in parts if part)


def _table(rows: Mapping[str, object]) -> str:
  lines = ["| | |", "|---|---|"]
  lines += [f"| {_cell(k)} | {_cell(v)} |" for k, v in rows.items()]
  return "\n".join(lines) + "\n"


def _cell(value) -> str:
  """A value on one line, without what Markdown would take for a border."""
  return str(value).replace("|", "\\|").replace("\n", " ")[:500]


def _metrics(metrics: Mapping) -> str:
  first = ("step", "tokens", "flops")
  shown = {key: f"{metrics[key]:,.6g}" for key in first if key in metrics}
  for key in ("step", "tokens"):
    if key in shown:
      shown[key] = f"{metrics[key]:,}"
  losses = {
    key: f"{value:.6g}"
    for key, value in sorted(metrics.items())
    if key.startswith(("train/", "eval/")) and isinstance(value, int | float)
  }
  return _table(shown | losses)


def _provenance(record: Mapping) -> str:
  if not record:
    return "The folder it was exported from keeps no record of its run.\n"
  rows = {word: record[key] for key, word in RECORD.items() if key in record}
  code = record.get("code") or {}
  if code.get("commit"):
    changed = " with local changes" if code.get("dirty") else ""
    rows["code"] = f"commit {code['commit']}{changed}"
  elif code.get("sha256"):
    rows["code"] = f"sha256 {code['sha256']}"
  machine = record.get("jax") or {}
  if "device_kind" in machine:
    rows["devices"] = f"{machine.get('devices')} x {machine['device_kind']}"
  packages = record.get("packages") or {}
  known = [p for p in ("aigc_jax", "jax", "flax", "optax") if p in packages]
  if known:
    rows["packages"] = ", ".join(f"{p} {packages[p]}" for p in known)
  return _table(rows)
