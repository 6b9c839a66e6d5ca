"""What a trained model may be used for, as one types it after `generate`."""

import dataclasses

from flax import linen as nn

from aigc_jax.sampling.decodes import Decodes, Hears
from aigc_jax.sampling.images import Draws, DrawsByCodes, Reconstructs
from aigc_jax.sampling.speech import Speaks
from aigc_jax.sampling.transcripts import Aligns


@dataclasses.dataclass(frozen=True)
class Use:
  """words: what such a model does. flags: those that ask for it.

  out: the file that it writes, "" where all is shown. prompt: a text that is
  needed beside them, where the data gives none. reads: whether a piece of the
  data is what it is given, "text" for a prompt or "audio" for a file. average:
  whether averaged parameters do it better.
  """

  words: str
  flags: tuple[str, ...] = ()
  out: str = ""
  prompt: str = ""
  reads: str = ""
  average: bool = False


# The first that fits: a Whisper decodes too, a VAE draws and reconstructs.
USES = (
  (
    Speaks,
    Use("speaks", out="x.wav", prompt="hello", reads="text", average=True),
  ),
  (Aligns | Hears, Use("hears sound", ("--audio=FILE.wav",), reads="audio")),
  (
    Draws | DrawsByCodes,
    Use("draws images", ("--grid=4x8",), out="x.png", average=True),
  ),
  (
    Reconstructs,
    # Four of those that are held out: few sets are smaller.
    Use("makes images of images", ("--grid=2x4", "--reconstruct"), "x.png"),
  ),
  (Decodes, Use("writes text")),
)


def use_of(model: nn.Module) -> Use | None:
  """What `generate` does with a model; None for one that only answers."""
  found = next((use for kind, use in USES if isinstance(model, kind)), None)
  if found is not None and getattr(model, "source", False) and not found.reads:
    return dataclasses.replace(found, prompt="hello", reads="text")
  return found
