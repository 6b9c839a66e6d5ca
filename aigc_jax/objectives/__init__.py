"""What is good: predictions against the batch.

An objective is a function (predict, batch) -> {name: Mean}; the entry "loss"
is the one that is differentiated.
"""

from aigc_jax.objectives.adversarial import adversarial
from aigc_jax.objectives.contrastive import contrastive
from aigc_jax.objectives.ctc import ctc
from aigc_jax.objectives.distill import distill
from aigc_jax.objectives.elbo import elbo
from aigc_jax.objectives.flow import flow
from aigc_jax.objectives.image_tokens import image_tokens
from aigc_jax.objectives.labels import labels
from aigc_jax.objectives.masked import masked
from aigc_jax.objectives.speech import speech
from aigc_jax.objectives.tokens import tokens
from aigc_jax.objectives.vq import vq
from aigc_jax.objectives.vqgan import vqgan

# The kinds a config may name; the other keys are their keyword arguments.
OBJECTIVES = {
  "adversarial": adversarial,
  "contrastive": contrastive,
  "ctc": ctc,
  "distill": distill,
  "elbo": elbo,
  "flow": flow,
  "image_tokens": image_tokens,
  "labels": labels,
  "masked": masked,
  "speech": speech,
  "tokens": tokens,
  "vq": vq,
  "vqgan": vqgan,
}
