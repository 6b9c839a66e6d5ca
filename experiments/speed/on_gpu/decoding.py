"""Greedy decoding of GPT-2 124M, with the weights and beside transformers."""

import tempfile
import time

import jax
import numpy as np

from aigc_jax import hf, run, sharding
from aigc_jax.sampling.decode import Engine, Row
from aigc_jax.sampling.logits import Sampling
from experiments.speed.on_gpu.part import Call

PROMPT, NEW = 128, 256


def find(call: Call) -> None:
  import torch
  import transformers

  sizes = dict(n_layer=12, n_embd=768, n_head=12, vocab_size=50_257)
  prompt, new, rows = PROMPT, NEW, (1, 16, 64)
  if call.rehearse:
    sizes = dict(n_layer=2, n_embd=32, n_head=2, vocab_size=300)
    prompt, new, rows = 8, 16, (1, 2)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    **sizes, eos_token_id=None, bos_token_id=0, pad_token_id=0
  )
  theirs = transformers.AutoModelForCausalLM.from_config(config)
  numbers = np.random.default_rng(0)
  ids = numbers.integers(0, sizes["vocab_size"], (max(rows), prompt))
  with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(folder)
    mesh = sharding.mesh_of(jax.devices()[0])
    with jax.set_mesh(mesh):
      for dtype in ("float32", "bfloat16"):
        model, params = loaded(folder, mesh, dtype)
        for n in rows:
          ours = decoded(model, params, ids[:n].tolist(), new)
          call.say(f"ours, {dtype}, {n} rows", ours | {"tokens": None})
          if (dtype, n) == ("float32", rows[1]):
            kept = ours["tokens"]
  theirs = theirs.eval().to(device)
  n = rows[1]
  found = generated(torch, theirs, ids[:n], new, device)["tokens"]
  equal = np.mean([a == b for a, b in zip(kept, found, strict=True)])
  call.say("rows equal to those of transformers in float32", float(equal))
  theirs = theirs.to(torch.bfloat16)
  for n in rows:
    found = generated(torch, theirs, ids[:n], new, device)
    call.say(f"transformers, bfloat16, {n} rows", found | {"tokens": None})


def loaded(folder: str, mesh, dtype: str):
  """Our model with the weights of an exported one."""
  kwargs = hf.load(folder).kwargs
  model = run.model_of(
    {"model": {"kind": "decoder"} | dict(kwargs)
     | {"unroll": None, "dtype": dtype}}
  )  # fmt: skip
  abstract = run.abstract_params(model, mesh)
  laid = jax.tree.map(lambda x: x.sharding, abstract)
  return model, hf.read_params(folder, abstract, laid)


def decoded(model, params, prompts, new: int) -> dict:
  """Seconds, once compiled, of reading the prompts and making the tokens."""
  engine = Engine(
    model, params, sampling=Sampling(), stop_ids=(), positions=1024,
    unrolled=True, group=min(new, 256), seed=0,
  )  # fmt: skip
  for _ in range(2):  # the first compiles
    began = time.perf_counter()
    session = engine.start([Row(tuple(p)) for p in prompts], new)
    found = [[] for _ in prompts]
    while not session.done:
      for row, more in zip(found, session.advance(new), strict=True):
        row += more.tolist()
    seconds = time.perf_counter() - began
  made = sum(map(len, found))
  return {"tokens/s": made / seconds, "seconds": seconds, "tokens": found}


def generated(torch, model, ids, new: int, device) -> dict:
  """The same by transformers' generate."""
  ids = torch.from_numpy(ids).to(device)
  for _ in range(2):
    began = time.perf_counter()
    with torch.inference_mode():
      out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
        do_sample=False,
      )  # fmt: skip
    found = out[:, ids.shape[1] :].tolist()
    seconds = time.perf_counter() - began
  made = sum(map(len, found))
  return {"tokens/s": made / seconds, "seconds": seconds, "tokens": found}
