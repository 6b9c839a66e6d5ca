"""Reports on finished or running runs.

  python -m aigc_jax.report diff DIR1 DIR2 [--json]
  python -m aigc_jax.report curve DIR [DIR ...] --out=curve.png
    [--metrics=train/loss,eval/heldout/loss] [--against=tokens] [--by=run]
    [--smooth=20] [--log=x,y] [--zoom=0.2] [--title='Peak rates']
  python -m aigc_jax.report table DIR [DIR ...] [--by=KEYS] [--baseline=ARM]
    [--metric=eval/heldout/loss] [--at=tokens:1e6] [--margin=0.003]
    [--out=x.md|.json|.html|.png]
  python -m aigc_jax.report html DIR [DIR ...] --out=report.html
  python -m aigc_jax.report gallery DIR [DIR ...] --out=gallery.html
  python -m aigc_jax.report rows DIR [DIR ...] --out=results.jsonl
  python -m aigc_jax.report reference DIR [DIR ...] --out=reference.json
  python -m aigc_jax.report compare DIR REFERENCE.json [--json]
  python -m aigc_jax.report soup DIR [DIR ...] --out=NEWDIR [--last=5]
    [--steps=800,900,1000]

DIR is the work directory of a run, a folder of such, or that of a sweep, whose
arms have names. Runs that differ in their seed only are an arm; --by names the
config keys that make an arm. DIR may also be a results.jsonl, which `rows`
makes of them, or a CSV with the columns arm, seed and a metric.

diff: what differs between two runs (config, code, data, environment) and where
their curves part. Exit status 0 when the curves are equal bit for bit, else 1.
curve: a picture of the runs' metrics, a colour for each run; an arm of several
seeds is a mean in a band of one standard deviation.
table: each arm, and each against the baseline (the first arm, if none is
named; of arms in a grid the name alone, "plain", for each its own values):
difference, interval, p, what could have been found.
html: table, curves, differences and provenance as one page.
gallery: what runs drew or wrote over the steps (DIR/samples) as one page.
compare: a curve against a reference that `reference` made of several seeds;
exit status 1 where it leaves their band.
soup: the average of the weights of kept checkpoints, of one run (LAWA) or of
several of one model, as a new work directory; held-out losses before and after.
"""

import dataclasses
import json
import shlex
from pathlib import Path

from absl import flags

from aigc_jax import command, files
from aigc_jax.errors import BadConfig, choose
from aigc_jax.scaling import (
  compare,
  curves,
  gallery,
  page,
  pictures,
  reference,
  results,
  soup,
  table,
)
from aigc_jax.scaling.ablation import Ablation, ablation
from aigc_jax.scaling.arms import EACH_RUN, Arm, arms_of
from aigc_jax.scaling.comparable import unlike_losses
from aigc_jax.scaling.runs import AXES, open_runs
from aigc_jax.scaling.sweeps import ledger
from aigc_jax.terminal import counted


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
  arms = _arms("curve", words)
  out = flags.FLAGS.out or "curve.png"
  pictures.check_kind(out)
  command.check_out(out)
  lines = _lines(arms)
  runs = [r for arm in arms for r in arm.runs]
  if unlike := unlike_losses(runs, flags.FLAGS.metrics):
    print(f"note: {unlike}")
  print(
    curves.draw(lines, out, metrics=flags.FLAGS.metrics, style=_style(arms))
  )
  return 0


def table_(words: list[str]) -> int:
  """The arms, and each against the baseline."""
  arms, out = _arms("table", words, waiting=True), flags.FLAGS.out
  if out:
    choose(Path(out).suffix.lower(), WRITERS, "--out ending in")
    command.check_out(out)
  found = _ablation(arms, _baseline(words))
  print(table.markdown(found))
  if out:
    WRITERS[Path(out).suffix.lower()](found, out)
    print(f"\n{out}")
  return 0


def html(words: list[str]) -> int:
  """One page of everything."""
  arms = _arms("html", words, waiting=True)
  out = flags.FLAGS.out or "report.html"
  command.check_out(out)
  try:
    found: Ablation | BadConfig = _ablation(arms, _baseline(words))
  except BadConfig as refusal:
    found = refusal  # the page says so, and shows the curves
  title = flags.FLAGS.title or "Report"
  metrics = _metrics()
  files.write_out(out, page.page(title, arms, found, metrics, _style(arms)))
  print(out)
  return 0


def gallery_(words: list[str]) -> int:
  """One page of what the runs drew and wrote."""
  if not words:
    raise BadConfig(
      "report gallery takes one or more work directories: python -m "
      "aigc_jax.report gallery DIR --out=gallery.html"
    )
  out = flags.FLAGS.out or "gallery.html"
  command.check_out(out)
  made = gallery.page(flags.FLAGS.title or "Gallery", open_runs(words))
  files.write_out(out, made)
  print(out)
  return 0


def reference_(words: list[str]) -> int:
  """The mean and spread of the curves of several seeds, as a file."""
  arms, out = _arms("reference", words), flags.FLAGS.out or "reference.json"
  command.check_out(out)
  if len(arms) > 1:
    names = ", ".join(repr(arm.name) for arm in arms)
    first = " ".join(shlex.quote(str(run.path)) for run in arms[0].runs)
    raise BadConfig(
      f"a reference is of runs that differ in their seed only; these are "
      f"{len(arms)} arms: {names}. Name the runs of one of them: python -m "
      f"aigc_jax.report reference {first} --out={shlex.quote(out)}"
    )
  made = reference.reference_of(arms[0].runs, flags.FLAGS.metrics)
  files.write_out(
    out, json.dumps(table.plain(made), indent=1, allow_nan=False) + "\n"
  )
  print(out)
  return 0


def compare_(words: list[str]) -> int:
  """A run against a reference; 1 where it leaves the band."""
  if len(words) != 2 or not words[1].endswith(".json"):
    raise BadConfig(
      "report compare takes a work directory and a reference: python -m "
      "aigc_jax.report compare DIR REFERENCE.json"
    )
  known = reference.read_reference(words[1])
  runs = open_runs(words[:1])
  if len(runs) > 1:
    raise BadConfig(f"{words[0]} holds {len(runs)} runs: name one of them")
  found = reference.against(runs[0], known)
  if flags.FLAGS.json:
    rows = [dataclasses.asdict(one) for one in found]
    print(json.dumps(table.plain(rows), indent=2))
  else:
    print(reference.as_text(found))
  return int(any(one.left for one in found))


def rows_(words: list[str]) -> int:
  """The runs as one file, from which reports are made again."""
  arms, out = _arms("rows", words), flags.FLAGS.out or "results.jsonl"
  choose(Path(out).suffix.lower(), {".jsonl": None}, "--out ending in")
  command.check_out(out)
  names = {r.name: arm.name for arm in arms for r in arm.runs}
  metrics = _metrics()
  runs = [r for arm in arms for r in arm.runs]
  files.write_out(out, results.lines_of(runs, names, metrics))
  print(out)
  return 0


def soup_(words: list[str]) -> int:
  """A work directory with the average of what others have kept."""
  values = flags.FLAGS
  if not words or not values.out:
    raise BadConfig(
      "report soup takes one or more work directories and a new one: python -m "
      "aigc_jax.report soup DIR [DIR ...] --out=NEWDIR"
    )
  if values.steps and values.last:
    raise BadConfig("--steps names checkpoints and --last counts them: one of")
  soup.check_new(values.out)
  of = soup.sources(words, _whole_numbers("steps", values.steps), values.last)
  newest = {source.workdir: source for source in of}
  lacking: dict[str, None] = {}
  rows = [
    (str(s), soup.losses(s.workdir, s.step, lacking.setdefault))
    for s in newest.values()
  ]
  print(f"the average of {counted(len(of), 'checkpoint')}:")
  for source in of:
    print(f"  {source}")
  for line in soup.notes(of):
    print(f"note: {line}")
  for line in lacking:
    print(f"note: {line}")
  out = soup.write(values.out, of)
  rows.append((f"{values.out}, the average", soup.losses(out)))
  print(f"\n{soup.as_text(rows, out)}\n\n{out}")
  return 0


def _whole_numbers(flag: str, words: list[str]) -> list[int]:
  if not all(word.isascii() and word.isdecimal() for word in words):
    raise BadConfig(
      f"--{flag}={','.join(words)}: expected steps, such as 800,900,1000"
    )
  return [int(word) for word in words]


def _baseline(words: list[str]) -> str:
  """The arm that is named, else that of the sweep."""
  if flags.FLAGS.baseline or flags.FLAGS.by:
    return flags.FLAGS.baseline
  sweeps = [w for w in words if ledger.is_sweep(files.expanded(w))]
  return (
    ledger.read_index(sweeps[0]).baseline
    if len(words) == 1 == len(sweeps)
    else ""
  )


def _arms(report: str, words: list[str], *, waiting: bool = False) -> list[Arm]:
  if not words:
    raise BadConfig(
      f"report {report} takes one or more work directories: python -m "
      f"aigc_jax.report {report} DIR [DIR ...]"
    )
  return arms_of(open_runs(words, waiting=waiting), flags.FLAGS.by)


def _ablation(arms: list[Arm], baseline: str) -> Ablation:
  values = flags.FLAGS
  return ablation(
    arms,
    metric=values.metric,
    baseline=baseline,
    at=values.at,
    margin=values.margin,
  )


def _style(arms: list[Arm]) -> curves.Style:
  axis = flags.FLAGS.against or _axis(arms)
  return dataclasses.replace(_as_asked(), against=axis)


def _as_asked() -> curves.Style:
  """What the flags say of a picture; BadConfig for what none could be."""
  values = flags.FLAGS
  return curves.Style(
    title=values.title or "",
    log=tuple(values.log),
    smooth=values.smooth,
    zoom=values.zoom,
  )


def _metrics() -> list[str]:
  """All that --metrics and --metric name."""
  named = [*flags.FLAGS.metrics, flags.FLAGS.metric]
  return list(dict.fromkeys(filter(None, named)))


def _axis(arms: list[Arm]) -> str:
  """Tokens, where all the runs count them; else what all data has."""
  rows = [run.rows for arm in arms for run in arm.runs]
  counted = all(any("tokens" in row for row in own) for own in rows)
  return "tokens" if counted else "examples"


def _lines(arms: list[Arm]) -> list[curves.Line]:
  """Arms where any has several seeds, else each run by itself; says which."""
  if flags.FLAGS.by == [EACH_RUN]:
    found = arms_of([r for arm in arms for r in arm.runs], [])
    if any(len(set(arm.seeds)) > 1 for arm in found):
      return curves.seeds(found)
  if not any(len(set(arm.seeds)) > 1 for arm in arms):
    return curves.single([r for arm in arms for r in arm.runs])
  print(
    f"{counted(len(arms), 'arm')}, each the mean of its seeds in a band of "
    f"one standard deviation (--by={EACH_RUN} draws each run by itself)"
  )
  return [curves.Line(arm.name, arm.runs) for arm in arms]


def _as_json(found: Ablation) -> str:
  return json.dumps(table.as_json(found), indent=1, allow_nan=False) + "\n"


def _as_page(found: Ablation) -> str:
  return page.document(f"{found.metric} by arms", table.as_html(found))


WRITERS = {
  ".md": lambda found, out: files.write_out(out, table.markdown(found) + "\n"),
  ".json": lambda found, out: files.write_out(out, _as_json(found)),
  ".html": lambda found, out: files.write_out(out, _as_page(found)),
  ".png": table.forest,
  ".pdf": table.forest,
  ".svg": table.forest,
}
REPORTS = {
  "compare": compare_,
  "curve": curve,
  "diff": diff,
  "gallery": gallery_,
  "html": html,
  "reference": reference_,
  "rows": rows_,
  "soup": soup_,
  "table": table_,
}


# Of each flag, the reports that read it.
DRAWN = ("curve", "html")
COMPARED = ("table", "html")
READ = {
  "json": ("diff", "compare"),
  "out": (
    "curve", "table", "html", "gallery", "reference", "rows", "soup",
  ),
  "metrics": ("curve", "html", "reference", "rows"),
  "against": DRAWN,
  "metric": (*COMPARED, "rows"),
  "baseline": COMPARED,
  "at": COMPARED,
  "margin": COMPARED,
  "by": ("curve", "table", "html", "reference", "rows"),
  "smooth": DRAWN,
  "log": DRAWN,
  "zoom": DRAWN,
  "title": ("curve", "html", "gallery"),
  "steps": ("soup",),
  "last": ("soup",),
}  # fmt: skip


def main(words: list[str]) -> int:
  """The command; the exit status."""
  if not words:
    raise BadConfig(f"name a report: {', '.join(REPORTS)}")
  report = choose(words[0], REPORTS, "report")
  command.check_read(
    {
      flag: ", ".join(f"`report {name}`" for name in names)
      for flag, names in READ.items()
      if words[0] not in names
    }
  )
  _as_asked()  # refused before any run is read
  return report(words[1:])


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_bool("json", False, "print JSON instead of text")
  flags.DEFINE_string("out", "", "the file to write (curve: curve.png)")
  flags.DEFINE_list("metrics", ["train/loss"], "what `curve` draws")
  flags.DEFINE_enum("against", None, AXES, "its x axis; tokens, if counted")
  flags.DEFINE_string("metric", "eval/heldout/loss", "what `table` compares")
  flags.DEFINE_string("baseline", "", "the arm that others are held against")
  flags.DEFINE_string("at", "", "where: an axis, or a place such as tokens:1e6")
  flags.DEFINE_float("margin", None, "a difference that is as good as none")
  flags.DEFINE_list("by", [], "config keys that make an arm, or `run`")
  flags.DEFINE_integer(
    "smooth",
    1,
    "rows of a running mean of training curves, of an even number one more",
  )
  flags.DEFINE_list("log", [], "logarithmic axes: x, y or x,y")
  flags.DEFINE_float("zoom", 0.0, "part of the x axis that an inset shows")
  flags.DEFINE_string("title", "", "the title of a picture")
  flags.DEFINE_list("steps", [], "soup: the checkpoints of each run")
  flags.DEFINE_integer("last", None, "soup: so many, else all", lower_bound=1)


if __name__ == "__main__":
  define_flags()
  command.main(main, words=True, alone=True)
