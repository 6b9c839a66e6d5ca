r"""Runs lm-evaluation-harness on our models.

  lm_eval --model aigc_jax --model_args workdir=DIR \
      --tasks lambada_openai,hellaswag
  python -m aigc_jax.lm_eval ...  the same

All flags are those of the harness's own command, `lm_eval`; this one only adds
the model "aigc_jax". Its arguments: workdir (DIR or hf:FOLDER), step, batch,
length (tokens read at once), seed. The harness finds models by being told of
them, not by itself, so that this package installs the command `lm_eval` once
more, with the model added; all else that the command does is the harness's.
"""

import sys

import jax
from absl import logging

from aigc_jax import run, terminal
from aigc_jax.errors import BadConfig, Refusal, nearest
from aigc_jax.evaluators.likelihood import LENGTH, Scorer

KNOWN = ("workdir", "step", "batch", "length", "seed")  # in --model_args


def register() -> None:
  """Makes the harness know "aigc_jax". Raises BadConfig where it is missing."""
  from aigc_jax.evaluators.lm_eval import Model, register_model

  @register_model("aigc_jax")
  class Registered(Model):
    """Model, made from the harness's --model_args."""

    def __init__(
      self,
      workdir: str = "",
      step: int | None = None,
      batch: int = 8,
      length: int = 0,
      seed: int = 0,
      batch_size: int | str | None = None,
      max_batch_size: int | None = None,
      device: str | None = None,
      **others,
    ):
      for key in others:
        raise BadConfig(
          f"--model_args {key}={others[key]} is unknown{nearest(key, KNOWN)} "
          f"(there are: {', '.join(KNOWN)})"
        )
      if not workdir:
        raise BadConfig("--model_args workdir=DIR is missing")
      del device, max_batch_size  # PyTorch's; here JAX_PLATFORMS chooses
      for key, value in dict(batch=batch, length=length, seed=seed).items():
        if not str(value).isdecimal():
          raise BadConfig(f"--model_args {key}={value}: expected a number")
      if str(batch_size).isdecimal() and int(batch_size) > 1:
        batch = int(batch_size)  # 1 is what the harness says by itself
      loaded = run.load(str(workdir), step=step, unroll=None, remat="none")
      jax.set_mesh(loaded.mesh)
      length = int(length) or loaded.length or LENGTH

      def scorer(batch: int) -> Scorer:
        return Scorer(
          loaded.model, loaded.params, loaded.tokenizer,
          length=length, batch=batch,
        )  # fmt: skip

      super().__init__(
        scorer,
        lambda sampling, seed: loaded.engine(sampling, seed=seed, group=16),
        name=loaded.name, batch=int(batch), seed=int(seed),
      )  # fmt: skip


def main_of_the_harness() -> int:
  """The harness's own command, which knows our models; the exit status."""
  logging.set_verbosity(logging.WARNING)
  terminal.guard()
  try:
    register()
    from lm_eval.__main__ import cli_evaluate

    return terminal.settled(cli_evaluate() or 0)
  except Refusal as refusal:
    print(f"aigc_jax: {refusal}", file=sys.stderr)
    return refusal.code


if __name__ == "__main__":
  sys.exit(main_of_the_harness())
