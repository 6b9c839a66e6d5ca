"""nanoGPT's training step, compiled by torch; the answers of `step`.

Its model, its optimizer (fused AdamW), autocast to bfloat16, TF32 allowed and
gradients clipped, as its train.py has them; batches lie on the device.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--folder", required=True)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--tiny", action="store_true")
  args = parser.parse_args()
  sys.path.insert(0, args.folder)
  said, sys.stdout = sys.stdout, sys.stderr  # its model prints
  from model import GPT, GPTConfig

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.allow_tf32 = True
  layers, heads, dim, T, V = 12, 12, 768, 1024, 50_304
  if args.tiny:
    layers, heads, dim, T, V = 2, 2, 32, 32, 256
  model = GPT(GPTConfig(
    block_size=T, vocab_size=V, n_layer=layers, n_head=heads, n_embd=dim,
    dropout=0.0, bias=False,
  )).to(device)  # fmt: skip
  optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
  compiled = torch.compile(model)
  numbers = np.random.default_rng(0)
  shares = np.cumsum(1 / (np.arange(V) + 2.7))
  pool = [
    torch.from_numpy(
      np.searchsorted(shares, numbers.random((args.batch, T + 1)) * shares[-1])
    ).to(device)
    for _ in range(4)
  ]
  done = 0

  def step():
    nonlocal done
    ids = pool[done % len(pool)]
    done += 1
    with torch.autocast(device, torch.bfloat16):
      _, loss = compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss

  def wait():
    if device == "cuda":
      torch.cuda.synchronize()

  def answer(found):
    print(json.dumps(found), file=said, flush=True)

  began = time.monotonic()
  step()
  wait()
  answer({
    "compile_seconds": time.monotonic() - began, "units": args.batch * T,
  })  # fmt: skip
  for line in sys.stdin:
    steps = json.loads(line)["steps"]
    began = time.perf_counter()
    for _ in range(steps):
      loss = step()
    wait()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    answer({
      "ms": (time.perf_counter() - began) * 1e3 / steps, "loss": loss.item(),
      "peak_bytes": peak,
    })  # fmt: skip


if __name__ == "__main__":
  main()
