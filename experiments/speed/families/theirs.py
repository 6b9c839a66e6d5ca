"""The peer's step of a family: a model on PyTorch, eager or compiled.

  python -m experiments.speed.families.theirs NAME [--compile] [--autocast]

Speaks as `ours` does. Forward, backward, clipping of the global norm, fused
AdamW; attention by PyTorch's own kernel.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
import transformers
from torch import nn

from aigc_jax.presets import timed
from aigc_jax.presets.timed import ADAMW, CLIP
from experiments.speed.families.sizes import FAMILIES, OURS


def made(name: str) -> tuple[nn.Module, list[dict]]:
  """(a model whose output has a loss, four batches for it)."""
  if name not in FAMILIES:
    from experiments.speed.families import pictures

    return pictures.PEERS[name](timed.small(OURS[name]))
  settings, kind, keywords = FAMILIES[name]
  config = getattr(transformers, settings)(**keywords)
  model = getattr(transformers, kind)(config)
  return model, batches(name, model)


def batches(name: str, model) -> list[dict]:
  """Four batches of the shapes that ours has, on the device."""
  draw, c = np.random.default_rng(0), model.config
  _, change = timed.FAMILIES[f"{name}_small"]
  B = change["data.batch"]

  def ids(T, vocab):
    shares = np.cumsum(1 / (np.arange(vocab) + 2.7))
    found = np.searchsorted(shares, draw.random((B, T)) * shares[-1])
    return torch.from_numpy(np.minimum(found, vocab - 3))

  def pixels(size):
    found = draw.standard_normal((B, 3, size, size))
    return torch.from_numpy(found.astype(np.float32))

  def one() -> dict:
    if name == "bert":
      tokens = ids(128, c.vocab_size)
      hidden = torch.from_numpy(draw.random((B, 128)) < 0.15)
      return dict(input_ids=tokens, labels=tokens.where(hidden, -100))
    if name == "t5":
      # Of 254 tokens 38 are hidden in 13 spans: 229 and a last one are read,
      # 51 and a last one written.
      return dict(
        input_ids=ids(230, c.vocab_size), labels=ids(52, c.vocab_size)
      )
    if name in ("vit", "resnet"):
      size = change.get("data.image_size", 224)
      labels = torch.from_numpy(draw.integers(0, 1000, B))
      return dict(pixel_values=pixels(size), labels=labels)
    if name == "clip":
      tokens = ids(32, 8000)
      tokens[:, -1] = 8191
      return dict(input_ids=tokens, pixel_values=pixels(224), return_loss=True)
    sound = draw.standard_normal((B, 80, 3000)).astype(np.float32)
    return dict(input_features=torch.from_numpy(sound), labels=ids(64, 8000))

  return [one() for _ in range(4)]


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("name", choices=OURS)
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--autocast", action="store_true")
  args = parser.parse_args()
  transformers.logging.set_verbosity_error()
  torch.manual_seed(0)
  model, pool = made(args.name)
  model.train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=ADAMW["learning_rate"], fused=True,
    betas=(ADAMW["b1"], ADAMW["b2"]), weight_decay=ADAMW["weight_decay"],
  )  # fmt: skip
  called = torch.compile(model) if args.compile else model
  done = 0

  def step():
    nonlocal done
    batch = pool[done % len(pool)]
    done += 1
    with torch.autocast("cpu", torch.bfloat16, enabled=args.autocast):
      loss = called(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss

  began = time.monotonic()
  step()
  print(json.dumps({
    "parameters": sum(
      p.numel() for p in model.parameters() if p.requires_grad
    ),
    "compile_seconds": time.monotonic() - began,
  }), flush=True)  # fmt: skip
  for line in sys.stdin:
    steps = json.loads(line)["steps"]
    began = time.perf_counter()
    for _ in range(steps):
      loss = step()
    ms = (time.perf_counter() - began) * 1e3 / steps
    print(json.dumps({"ms": ms, "loss": loss.item()}), flush=True)


if __name__ == "__main__":
  main()
