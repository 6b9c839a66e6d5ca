"""Samples: what a model writes, kept as text beside its checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import logging
from flax import linen as nn

from aigc_jax import files
from aigc_jax.data.special import stops
from aigc_jax.errors import BadConfig, NonFinite
from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.decodes import Forward
from aigc_jax.sampling.logits import Sampling
from aigc_jax.sampling.text import Completion, generate, reader


def checked(
  *, max_tokens: int, temperature: float, top_p: float, num_samples: int
) -> Sampling:
  """How tokens are drawn. Raises BadConfig for what no text could be made by.

  Before the training: it is at its end, maybe, that the first text is written.
  """
  for name, value in dict(
    max_tokens=max_tokens, num_samples=num_samples
  ).items():
    if value < 1:
      raise BadConfig(f"{name}={value}: expected 1 or more")
  return Sampling(temperature=temperature, top_p=top_p).check(2**31)


def check_positions(
  forward: Forward,
  tokenizer,
  prompts: Sequence[str],
  max_tokens: int,
  most: int,
) -> None:
  """Raises BadConfig for a prompt that a model of `most` positions cannot end.

  most: 0 is no limit.
  """
  read = reader(forward.model)
  for prompt in prompts if most else ():
    taken = forward.positions_of(len(read(tokenizer, prompt)), max_tokens)
    if taken > most:
      fits = max_tokens - (taken - most)
      way = f"max_tokens={fits} fits" if fits > 0 else "shorten the prompt"
      raise BadConfig(
        f"the prompt {prompt[:40]!r} and max_tokens={max_tokens} take {taken} "
        f"positions, and the model has {most} ({way})"
      )


class Samples:
  """evaluate(step, state) -> {}: writes FOLDER/<step>.txt.

  The prompts are continued with the same seed each time, so that files differ
  by the model alone. positions: how many the model has, 0 for no limit;
  unrolled: whether it was built with unroll=None. Only the first process
  writes; all of them take part.
  """

  def __init__(
    self,
    model: nn.Module,
    tokenizer,
    mesh: jax.sharding.Mesh,
    folder: str | Path,
    *,
    prompts: Sequence[str],
    max_tokens: int,
    temperature: float,
    top_p: float,
    num_samples: int,
    seed: int,
    positions: int,
    unrolled: bool,
    start: int | None = None,
    poll: Callable[[], None] | None = None,
  ):
    if not prompts:
      raise BadConfig("samples need prompts: [''] begins a new text")
    sampling = checked(
      max_tokens=max_tokens, temperature=temperature, top_p=top_p,
      num_samples=num_samples,
    )  # fmt: skip
    check_positions(
      Forward(model, unrolled, start), tokenizer, prompts, max_tokens, positions
    )
    self.model, self.tokenizer, self.mesh = model, tokenizer, mesh
    self.folder, self.prompts = Path(folder), tuple(prompts)
    self.max_tokens, self.num_samples = max_tokens, num_samples
    self._poll = poll
    self._engine: Engine | None = None
    self._settings = dict(
      sampling=sampling,
      stop_ids=stops(tokenizer), positions=positions, unrolled=unrolled,
      start=start,
      group=32, seed=seed,
    )  # fmt: skip

  def __call__(self, step: int, state) -> dict[str, float]:
    """Writes the samples of this state. Raises StorageFailure."""
    with jax.set_mesh(self.mesh):
      if self._engine is None:
        self._engine = Engine(self.model, state.params, **self._settings)
      else:  # what was compiled serves the new parameters too
        self._engine.use(state.params)
      try:
        found = generate(
          self._engine, self.tokenizer, self.prompts,
          max_tokens=self.max_tokens, num_samples=self.num_samples,
          stops=(), batch=8, steps=32, poll=self._poll,
        )  # fmt: skip
      except NonFinite as refusal:  # a text is not worth the training
        logging.warning("no samples of step %d: %s", step, refusal)
        return {}
      finally:
        self._engine.drop()
    if jax.process_index() == 0:
      write(self.folder / f"{step}.txt", found, step)
    return {}


def write(path: Path, found: Sequence[Completion], step: int) -> None:
  """The completions as text a person reads. Raises StorageFailure."""
  parts = [f"step {step}\n"]
  for c in found:
    parts.append(f"--- prompt {c.index}, sample {c.sample} ({c.finish})\n")
    parts.append(f"{c.prompt}{c.text}\n")
  files.own_folder(path.parent)
  files.write_text(path, "\n".join(parts))
