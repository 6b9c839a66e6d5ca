"""Makes token stores ahead of time.

  python -m aigc_jax.prepare --config=configs/quickstart.py --workers=2
  python -m aigc_jax.prepare --path=PATH --tokenizer=bytes --workers=2
  python -m aigc_jax.prepare --corpus=stdlib --tokenizer=sentencepiece
  python -m aigc_jax.prepare --tfds=lm1b --download --workers=8

Train and validation are prepared; what is there already is kept, and what an
interrupted run finished is used. A training run with the same data settings
and the same root finds the stores.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence

from absl import flags
from rich.console import Console
from rich.progress import (
  BarColumn,
  DownloadColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
  TransferSpeedColumn,
)

from aigc_jax import command, data, run, terminal
from aigc_jax.data.listing import check_there
from aigc_jax.data.pairs import Pairs
from aigc_jax.data.text import Text
from aigc_jax.errors import BadConfig, BadData, Stopped
from aigc_jax.terminal import counted

FLAGS = {
  "path": "text: a file, a folder or a glob",
  "corpus": "an embedded corpus, such as stdlib",
  "tfds": "a TFDS dataset: name[/config][:version]",
}


def stores(
  *,
  sources: list[dict],
  tokenizer,
  tokenizer_vocab: int,
  validation: float,
  root: str,
  workers: int,
  splits: Iterable[str | None] = (None, "validation"),
  verify: bool = False,
  download: bool = False,
  special: Sequence[str] = (),
) -> list[data.Store]:
  """Prepares with a progress bar; prints where the stores are.

  The arguments are the data settings of a config; a tokenizer may be one that
  is there already. Returns the stores.
  """
  console = Console(file=terminal.plain(sys.stderr))
  columns = (TextColumn("{task.description}", markup=False), BarColumn(),
             DownloadColumn(), TransferSpeedColumn(),
             TimeRemainingColumn())  # fmt: skip
  found = []
  for split in splits:
    with Progress(*columns, console=console, transient=True) as bar:
      task = bar.add_task(terminal.shown(split or "train"), total=None)
      made = data.prepare(
        sources=sources,
        tokenizer=tokenizer,
        tokenizer_vocab=tokenizer_vocab,
        validation=validation,
        root=root,
        splits=(split,),
        workers=workers,
        download=download,
        special=special,
        say=lambda text, bar=bar: bar.console.print(
          terminal.shown(text),
          style="dim",
          soft_wrap=True,
          markup=False,
          highlight=False,
        ),  # fmt: skip
        progress=lambda done, total, bar=bar, task=task: bar.update(
          task, completed=done, total=total
        ),
      )
    for store in made:
      if verify:
        store.verify()
      print(describe(store, verify), flush=True)
    found += made
  return found


def describe(store: data.Store, verified: bool = False) -> str:
  """Some lines about a store."""
  m = store.manifest
  lines = [
    f"{m['name']} ({m['split']}): {store.folder}",
    f"  {m['tokens']:,} tokens, {counted(m['documents'], 'document')}, "
    f"{m['bytes']:,} bytes, {m['bytes_per_token']:.3f} bytes per token",
  ]
  if m["split"] != "train" and (line := run.few(m["tokens"])):
    lines.append(f"  {line} (a larger --validation, or more text, says more)")
  if m["replaced"]:
    lines.append(f"  {counted(m['replaced'], 'document')} not in UTF-8")
  if m["yardsticks"]:
    y = m["yardsticks"]
    lines.append(
      f"  bits per byte: gzip {y['gzip']:.3f}, xz {y['xz']:.3f} "
      f"(of {y['bytes']:,} bytes)"
    )
  if verified:
    lines.append("  every sha256 is right")
  return "\n".join(lines)


def source_of(*, path: str, corpus: str, tfds: str, field: str) -> dict:
  """The one source that the flags name. Raises BadConfig unless it is one."""
  given = [
    n for n, v in (("path", path), ("corpus", corpus), ("tfds", tfds)) if v
  ]
  if len(given) != 1:
    raise BadConfig(
      "name one source with --path=PATH, --corpus=stdlib or --tfds=NAME; got "
      f"{' and '.join('--' + n for n in given) or 'none'}"
    )
  if path:
    return dict(kind="text", path=path, split="train", field=field, weight=1.0)
  if corpus:
    return dict(kind="corpus", name=corpus, split="train", weight=1.0)
  return dict(kind="tfds", name=tfds, split="train", field=field, weight=1.0)


def define_flags() -> None:
  """The flags of this command; --config takes the place of the data's own."""
  for name, meaning in FLAGS.items():
    flags.DEFINE_string(name, "", meaning)
  flags.DEFINE_string(
    "field", "text", "text field of JSON lines, Parquet, TFDS"
  )
  flags.DEFINE_string(
    "tokenizer", "bytes", "bytes, sentencepiece, PATH/x.model or hf:FOLDER"
  )
  flags.DEFINE_integer("tokenizer_vocab", 4096, "pieces of a trained tokenizer")
  flags.DEFINE_float("validation", 0.02, "fraction of the text held out")
  flags.DEFINE_string(
    "validation_path", "", "held-out text: a file, a folder or a glob"
  )
  flags.DEFINE_string("root", "~/.cache/aigc_jax", "where stores are kept")
  flags.DEFINE_integer("workers", 0, "processes; 0 works in this one")
  flags.DEFINE_bool("verify", False, "also compare every sha256")
  flags.DEFINE_bool("download", False, "get a TFDS dataset that is not here")


def _by_flags(values, how: dict) -> None:
  names = ("path", "corpus", "tfds", "field")
  own = values.validation_path
  if own:  # it is read last
    check_there(own, "--validation_path")
  share = 0.0 if own else values.validation
  settings = {
    "sources": [source_of(**{name: values[name].value for name in names})],
    "tokenizer": values.tokenizer,
    "tokenizer_vocab": values.tokenizer_vocab,
    "validation": share,
    "root": values.root,
  }
  try:
    stores(**settings, splits=(None, *("validation",) * bool(share)), **how)
    if own:
      source = source_of(path=own, corpus="", tfds="", field=values.field)
      stores(
        **settings
        | {
          "sources": [source],
          "tokenizer": data.find_tokenizer(**settings),
        },
        splits=("all",),
        **how,
      )
  except BadData as e:  # these flags have no section
    raise BadData(str(e).replace("--config.data.", "--")) from e


def _check_alone(values) -> None:
  """Raises BadConfig for a flag that says what the config says already."""
  keys = ("path", "field", "tokenizer", "tokenizer_vocab", "validation",
          "validation_path", "root")  # fmt: skip
  for name in (*FLAGS, *keys):
    if not values[name].present:
      continue
    way = "leave out --config"
    if name in keys:
      way = f"write --config.data.{name}={values[name].value} or {way}"
    raise BadConfig(f"--{name} is not read beside --config: {way}")


def _by_config(config: run.Config, how: dict) -> None:
  run.check_paths(config)
  run.check_heldout_paths(config)
  found = run.data_of(config)
  if not isinstance(found, Text):
    _of_another_kind(found, config, how)
    return
  settings = found.arguments()
  share = settings["validation"]
  stores(**settings, splits=(None, *("validation",) * bool(share)), **how)
  if found.validation_path:
    settings |= found.heldout_arguments("validation")
    settings["tokenizer"] = found.find_tokenizer()
    stores(splits=(settings.pop("split"),), **settings, **how)


def _of_another_kind(found, config: run.Config, how: dict) -> None:
  """Reads all of it once, as training does: what that keeps is made here.

  Of what it is measured on too.
  """
  kind = config["data"]["kind"]
  for name, value in how.items():
    if value:
      raise BadConfig(f"--{name} is of text, this is data.kind={kind!r}")
  stream = found.stream(seed=0, model=config["model"])
  for view in stream.views:
    print(f"{view.name}: {counted(len(view), 'example')} ready for training")
  if isinstance(found, Pairs):
    return  # they are read at each start; what is kept is their tokenizer
  for name, entry in run.evaluations(config).items():
    if "data" in entry:
      held = _held_out(config, entry, stream.tokenizer)
      print(f"evaluate.{name}: {counted(len(held), 'example')} held out")


def _held_out(config: run.Config, entry: Mapping, tokenizer) -> data.EvalSet:
  """What an entry of config.evaluate is measured on."""
  if entry["kind"] in run.EMBEDDED:
    return run.open_embedded(config, entry, tokenizer, print)
  return run.open_eval(config, tokenizer=tokenizer, **entry["data"])


def main() -> int:
  """The command; the exit status."""
  values = flags.FLAGS
  names = ("workers", "verify", "download")
  how = {name: values[name].value for name in names}
  try:
    if values.config is None:
      _by_flags(values, how)
    else:
      _check_alone(values)
      _by_config(run.read(values.config), how)
  except KeyboardInterrupt:
    raise Stopped("stopped; run the same line again to go on") from None
  return 0


if __name__ == "__main__":
  define_flags()
  command.main(main, config=True, alone=True)
