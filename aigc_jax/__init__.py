"""aigc_jax: pretraining of generative models at scale, in JAX.

The parts in import order; each may import itself and those before it:

  errors      refusals, each with its exit status
  signature   keyword arguments from a config, checked by name and type
  presets     the skeleton of configs, published architectures
  files       read within bounds, written whole or not at all
  records     what a JSON value must be
  terminal    what is shown does nothing but appear
  early       the first word and Ctrl-C, before the imports
  native      what C++ writes to the terminal, after our own words
  memory      what a step on a CPU frees is kept for the next one
  outages     devices, memory, disks and processes that fail
  tree        pytrees by path: names, match, mask, count, cast, digest
  metrics     Mean(sum, weight) and merge
  chips       peaks of known devices; unknown is unknown
  sharding    the alphabet, the rules, the mesh
  layers      the one small set of building blocks
  models      architectures: inputs, a stack, a head
  flops       what a step costs, counted from shapes
  objectives  what is good: predictions against the batch
  data        everything before the device
  optim       schedules, optimizers, parameter groups
  trainer     state, step, loop, checkpoints, lock, stop, journal
  sampling    logits to tokens; decoding with a cache
  evaluators  loss and bits per byte, choices, text scores
  hf          one table per family, read in both directions
  run         config to Run; the only file that reads a config
  planning    what a run needs, before it is paid for
  scaling     sweeps, fits, reports
  command     what all commands share: flags, devices, exit codes
  timing      steps in turns, the machine, the program

and the commands: prepare train evaluate generate export bench report sweep fit
coordinates lm_eval.
"""

import os
import sys

# Before anything else is imported: libraries abort where there is no folder.
if sys.argv[:1] == ["-m"]:
  try:
    os.getcwd()
  except OSError:
    print(
      "aigc_jax: the folder that this command was started in is gone: go to "
      "one that is there (cd), and name files by their full paths",
      file=sys.stderr,
    )
    sys.exit(74)
  from aigc_jax import early

  early.begin(sys.orig_argv, sys.argv[1:])
