"""Runs lm-evaluation-harness on our models.

  python -m aigc_jax.lm_eval --model aigc_jax --model_args workdir=DIR \\
      --tasks lambada_openai,hellaswag

All flags are those of the harness's own command, `lm_eval`; this one only adds
the model "aigc_jax". Its arguments: workdir (DIR or hf:FOLDER), step, batch,
length (tokens read at once), seed. The harness finds models by being told of
them, not by itself, so that its own command does not know ours.
"""

import sys

import jax
from absl import logging

from aigc_jax import run
from aigc_jax.errors import BadConfig, Refusal
from aigc_jax.evaluators.likelihood import LENGTH, Scorer


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
    ):
      if not workdir:
        raise BadConfig("--model_args workdir=DIR is missing")
      del device, max_batch_size  # PyTorch's; here JAX_PLATFORMS chooses
      if str(batch_size).isdecimal() and int(batch_size) > 1:
        batch = int(batch_size)  # 1 is what the harness says by itself
      loaded = run.load(str(workdir), step=step, unroll=0, remat="none")
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


def main() -> int:
  """The command; the exit status."""
  logging.set_verbosity(logging.WARNING)
  try:
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
  except Refusal as refusal:
    print(f"aigc_jax: {refusal}", file=sys.stderr)
    return refusal.code
  return 0


if __name__ == "__main__":
  sys.exit(main())
