"""Reports on finished or running runs.

  python -m aigc_jax.report diff DIR1 DIR2 [--json]
  python -m aigc_jax.report curve DIR [DIR ...] --out=curve.png
    [--metrics=train/loss,eval/heldout/loss] [--against=tokens] [--by=run]
    [--smooth=20] [--log=x,y] [--zoom=0.2] [--title='Peak rates']

DIR is the work directory of a run, or a folder of such.

curve: a picture of the runs' metrics, a colour for each run; runs that differ
in their seed only are a mean in a band of one standard deviation.
diff: what differs between two runs (config, code, data, environment) and where
their curves part. Exit status 0 when the curves are equal bit for bit, else 1.
"""

import dataclasses
import json

from absl import flags

from aigc_jax import command
from aigc_jax.errors import BadConfig, choose
from aigc_jax.scaling import compare, curves, pictures
from aigc_jax.scaling.arms import EACH_RUN, Arm, arms_of
from aigc_jax.scaling.runs import AXES, open_runs


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
    raise BadConfig(
      "report curve takes one or more work directories: python -m "
      "aigc_jax.report curve DIR [DIR ...] --out=curve.png"
    )
  out = values.out or "curve.png"
  pictures.check_kind(out)
  command.check_out(out)
  style = curves.Style(
    against=values.against,
    title=values.title,
    log=tuple(values.log),
    smooth=values.smooth,
    zoom=values.zoom,
  )
  lines = _lines(arms_of(open_runs(words), values.by))
  print(curves.draw(lines, out, metrics=values.metrics, style=style))
  return 0


def _lines(arms: list[Arm]) -> list[curves.Line]:
  """Arms where any has several seeds, else each run by itself; says which."""
  if not any(len(set(arm.seeds)) > 1 for arm in arms):
    return curves.single([r for arm in arms for r in arm.runs])
  if flags.FLAGS.by != [EACH_RUN]:
    print(
      f"{len(arms)} arm(s), each the mean of its seeds in a band of one "
      f"standard deviation (--by={EACH_RUN} draws each run by itself)"
    )
  return [curves.Line(arm.name, arm.runs) for arm in arms]


REPORTS = {"curve": curve, "diff": diff}


def main(words: list[str]) -> int:
  """The command; the exit status."""
  if not words:
    raise BadConfig(f"name a report: {', '.join(REPORTS)}")
  return choose(words[0], REPORTS, "report")(words[1:])


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_bool("json", False, "print JSON instead of text")
  flags.DEFINE_string("out", "", "the file to write (curve: curve.png)")
  flags.DEFINE_list("metrics", ["train/loss"], "what `curve` draws")
  flags.DEFINE_enum("against", "tokens", AXES, "its x axis")
  flags.DEFINE_list("by", [], "config keys that make an arm, or `run`")
  flags.DEFINE_integer("smooth", 1, "rows of a running mean of training curves")
  flags.DEFINE_list("log", [], "logarithmic axes: x, y or x,y")
  flags.DEFINE_float("zoom", 0.0, "part of the x axis that an inset shows")
  flags.DEFINE_string("title", "", "the title of a picture")


if __name__ == "__main__":
  define_flags()
  command.main(main, words=True)
