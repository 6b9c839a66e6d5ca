"""English and French sentences out of the catalogues in Python wheels.

  pip download --no-deps --dest WHEELS -r experiments/translation/wheels.txt
  python -m experiments.translation.gather WHEELS OUT

writes OUT/sentences.jsonl, of 4 to 40 words, and OUT/phrases.jsonl, of 1 to 3.
Left out, as they would flatter a score: what has a placeholder or markup, or is
the same in both languages.
"""

import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from aigc_jax.data.gettext import read_catalogue

LANGUAGES = {"fr", "fr_FR", "fr-FR"}
PLACEHOLDER = re.compile(r"[{}<>%$\\|`\[\]\n]|&\w+;|https?:|\w/\w|__")
# Keys of menus: "_Open", "&Open".
MNEMONIC = re.compile(r"(?<!\w)[_&](?=\w)")


def catalogues(wheel: Path):
  """The French catalogues of a wheel; of two of one name the text."""
  with zipfile.ZipFile(wheel) as archive:
    names = [
      name
      for name in archive.namelist()
      if name.endswith((".po", ".mo"))
      and LANGUAGES & set(PurePosixPath(name).parts)
    ]
    texts = {name for name in names if name.endswith(".po")}
    for name in names:
      if name.endswith(".mo") and name[:-3] + ".po" in texts:
        continue
      with tempfile.TemporaryDirectory() as folder:
        yield read_catalogue(Path(archive.extract(name, folder)))


def clean(text: str) -> str:
  return " ".join(MNEMONIC.sub("", text).split())


def gather(wheels: Path) -> list[tuple[str, str]]:
  """Each pair once, in the order of the wheels' names."""
  found: dict[tuple[str, str], None] = {}
  for wheel in sorted(wheels.glob("*.whl")):
    before = len(found)
    for pairs in catalogues(wheel):
      for pair in pairs:
        if any(PLACEHOLDER.search(text) for text in pair):
          continue
        source, target = map(clean, pair)
        if source and target and source.lower() != target.lower():
          found[source, target] = None
    print(f"{wheel.name}: {len(found) - before} pairs", file=sys.stderr)
  return list(found)


def main(wheels: str, out: str) -> None:
  files = {"sentences": range(4, 41), "phrases": range(1, 4)}
  pairs = gather(Path(wheels))
  Path(out).mkdir(parents=True, exist_ok=True)
  for name, words in files.items():
    some = [pair for pair in pairs if len(pair[0].split()) in words]
    lines = [
      json.dumps({"en": en, "fr": fr}, ensure_ascii=False) + "\n"
      for en, fr in some
    ]
    Path(out, f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{name}.jsonl: {len(some)} pairs", file=sys.stderr)


if __name__ == "__main__":
  main(*sys.argv[1:])
