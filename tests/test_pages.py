"""Pages that are made from the code equal it, and their examples are read."""

import json
import re

import pytest

from aigc_jax import hf
from aigc_jax.evaluators import formats
from aigc_jax.presets import skeleton
from aigc_jax.run import overrides
from aigc_jax.run.settings import plain_of
from tests import pages


@pytest.mark.parametrize("page", pages.PAGES)
def test_a_page_equals_what_the_code_makes_of_it(page):
  text = (pages.ROOT / page).read_text()
  assert pages.made(text) == text, "python -m tests.pages"
  assert pages.MARK.search(text)


def leaves(section: dict, prefix: str = ""):
  for key, value in section.items():
    if isinstance(value, dict) and f"{prefix}{key}" not in WHOLE:
      yield from leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}"


WHOLE = ("data.task", "evaluate.heldout.data", "frozen", "init_parts")


def test_every_key_of_a_config_is_on_its_page_with_a_meaning():
  rows = re.findall(r"^\| `([\w.]+)` \| `.*` \| (.+) \|$",
                    pages.config_keys(), re.MULTILINE)  # fmt: skip
  assert {key for key, _ in rows} == set(leaves(plain_of(skeleton())))


def test_the_examples_of_tasks_are_tasks():
  text = (pages.ROOT / "aigc_jax/evaluators/README.md").read_text()
  examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
  found = [formats.format_of(json.loads(line), "README") for line in examples]
  assert found == ["choices", "references"]
  item = formats.FORMATS["choices"].read(json.loads(examples[0]))
  assert item.choices[item.label] == "Paris"


def test_the_flags_of_the_page_of_configs_can_be_set():
  text = (pages.ROOT / "configs/README.md").read_text()
  flags = re.findall(r"`--config\.([\w.\[\]]+)=([^`]+)`", text)
  flags = [(k, v.strip("'\"")) for k, v in flags if "VALUE" not in v]
  assert len(flags) > 4
  overrides.apply(plain_of(skeleton()), flags)


def test_the_readme_leads_to_every_page():
  text = (pages.ROOT / "README.md").read_text()
  linked = set(re.findall(r"\]\(([\w/]+README\.md)\)", text))
  wanted = {*pages.PAGES, "aigc_jax/data/README.md",
            "experiments/launch/README.md"}  # fmt: skip
  assert wanted <= linked
  assert all((pages.ROOT / page).is_file() for page in linked)


def test_the_readme_names_every_architecture_that_is_written():
  """Those of decoders by their models: Llama, Qwen, Gemma, ..."""
  text = (pages.ROOT / "README.md").read_text()
  table = text.partition("## Families")[2].partition("\n## ")[0]
  for family in hf.FAMILIES.values():
    name = re.split("For|MTModel|Model", family.architecture)[0]
    assert family.kind == "decoder" or name in table, family.architecture
