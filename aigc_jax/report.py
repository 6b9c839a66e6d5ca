"""Reports on finished or running runs.

  python -m aigc_jax.report diff DIR1 DIR2 [--json]
  python -m aigc_jax.report curve DIR [DIR ...] --out=curve.png
    [--metrics=train/loss,eval/heldout/loss] [--against=tokens]

curve: a picture of the runs' metrics (extra [plots]).
diff: what differs between two runs (config, code, data, environment) and where
their curves part. Exit status 0 when the curves are equal bit for bit, else 1.
"""

import dataclasses
import json

from absl import flags

from aigc_jax import command
from aigc_jax.errors import BadConfig, choose
from aigc_jax.scaling import compare, curves


def diff(words: list[str]) -> int:
  """The report on two work directories."""
  if len(words) != 2:
    raise BadConfig(
      f"report diff takes two work directories, got {len(words)}: "
      "python -m aigc_jax.report diff DIR1 DIR2"
    )
  found = compare.compare(*words)
  if flags.FLAGS.json:
    print(json.dumps(dataclasses.asdict(found), indent=2))
  else:
    print(compare.as_text(found))
  return int(found.parts_at is not None or not found.steps)


def curve(words: list[str]) -> int:
  """The picture of the curves of work directories."""
  values = flags.FLAGS
  if not words:
    raise BadConfig("report curve takes one or more work directories")
  out = curves.draw(
    words, values.out, metrics=values.metrics, against=values.against
  )
  print(out)
  return 0


REPORTS = {"curve": curve, "diff": diff}


def main(words: list[str]) -> int:
  """The command; the exit status."""
  if not words:
    raise BadConfig(f"name a report: {', '.join(REPORTS)}")
  return choose(words[0], REPORTS, "report")(words[1:])


if __name__ == "__main__":
  flags.DEFINE_bool("json", False, "print JSON instead of text")
  flags.DEFINE_string("out", "curve.png", "the picture of `curve`")
  flags.DEFINE_list("metrics", ["train/loss"], "what `curve` draws")
  flags.DEFINE_enum(
    "against", "tokens", ["tokens", "step", "flops", "seconds"], "its x axis"
  )
  command.main(main, words=True)
