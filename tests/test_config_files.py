"""A config file of one's own: found, run, and its faults told by line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aigc_jax import run
from aigc_jax.errors import BadConfig
from aigc_jax.run import script
from tests import commands

ROOT = Path(__file__).parents[1]
OWN = """
from aigc_jax.presets import skeleton

def get_config():
  config = skeleton()
  config.model.dim = 256
  return config
"""


def written(folder: Path, text: str, name: str = "mine.py") -> str:
  (folder / name).write_text(text)
  return str(folder / name)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("x = 1\n", r"mine\.py: the file defines no get_config\(\)"),
    ("def get_confg():\n  return {}\n", "did you mean 'get_confg'"),
    ("def get_config():\n  x = 1\n", "returns nothing instead of a config"),
    ("def get_config():\n  return 3\n", "returns 3 instead of a config"),
    ("def get_config()\n  return {}\n", r"line 1: expected ':'"),
    ("\ndef get_config():\n  return 1 / 0\n", r"line 3: ZeroDivisionError"),
    ("import sys\nsys.exit(0)\n", r"line 2: SystemExit: 0: it ends the com"),
    ("def get_config():\n  raise SystemExit\n", r"line 2: SystemExit: "),
    ("import nowhere_at_all\n", "line 1: imports what is not here.*e_at_all"),
    ("from mnie import x\n", r"not here: .*; did you mean 'mine'\?"),
    (
      "from aigc_jax.presets import lama\n",
      r"not here: .*; did you mean 'llama'\?",
    ),
    (
      OWN.replace("config.model.dim", "config.modl.dim"),
      r"line 6: there is no 'modl'; did you mean 'model'\?",
    ),
    (
      OWN.replace("config.model.dim", "config.training.steps"),
      r"line 6: there is no 'training' \(there are: branch_from, .*total_tok",
    ),
    (
      OWN.replace("dim = 256", "dim = 'wide'"),
      r"line 6: dim is 'wide', expected a whole number \(config.model.dim = 'w",
    ),
    (
      OWN.replace("model.dim = 256", "model = 'llama'"),
      r"line 6: model is 'llama', expected keys and their values \(config.mod",
    ),
    (OWN.replace("model.dim", "dimm"), "config key dimm is unknown"),
    (OWN.replace("dim = 256", "rotary_scaling = print"), "built-in.*a config"),
    ("def get_config(preset):\n  return {}\n", "needs a preset"),
  ],
)
def test_a_fault_of_the_file_is_told_by_name_and_line(tmp_path, text, words):
  with pytest.raises(BadConfig, match=words):
    run.read(run.configured(written(tmp_path, text), []))


@pytest.mark.parametrize(
  ("line", "words"),
  [
    (
      "config.optim.averag = 0.9",
      r"did you mean 'average'\? \(there are: average, b1, .*, spike_window, ",
    ),
    ("config.model.kin = 3", r"\(there are: .*, kind, kv_heads, "),
  ],
)
def test_a_wrong_key_is_told_all_that_there_are(tmp_path, line, words):
  path = written(tmp_path, OWN.replace("config.model.dim = 256", line))
  with pytest.raises(BadConfig, match=words):
    run.build(run.read(run.configured(path, [])))


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ("config.model.dmi = 3", r"key model.dmi is unknown; .*\n  in .*mine\.py, "
     r"line 6: config.model.dmi = 3$"),
    ("config.data.update(btach=3)", r"data.btach is unknown.*\n.* line 6: "),
    ("config.model = dict(config.model, lyers=2)", r"lyers .*\n.*, line 6: "),
    ("config.model = dict(config.model, dim='x')",
     r"model.dim='x': expected .*\n.* line 6: "),
    ("config.model.kind = 'decodr'", r"did you mean 'decoder'.*\n.* line 6: "),
    ("config.optim = dict(kind='adamw', learning_rate='fast')",
     r"keys optim.schedule, .*, optim.spike_window are missing\n.* line 6: .*\n"
     r"  config.optim.update\(KEY=VALUE\) sets some keys, and leaves"),
    ("config.evaluate.mine = dict(kind='los', data=dict(split='validation'))",
     r"evaluate.mine.kind 'los' is unknown; did you mean 'loss'.*\n.* line 6"),
  ],
)  # fmt: skip
def test_a_wrong_key_is_told_where_it_stands_in_the_file(tmp_path, line, words):
  path = written(tmp_path, OWN.replace("config.model.dim = 256", line))
  done = commands.run(
    "aigc_jax.train", f"--config={path}", "--config.steps=3", "--dry_run",
    cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == BadConfig.code and not done.stdout
  assert re.search(words, done.stderr.strip()), done.stderr


def test_a_preset_that_a_file_does_not_take_is_refused():
  quickstart = f"{ROOT}/configs/quickstart.py"
  assert run.configured(quickstart, [])["steps"] == 600
  with pytest.raises(BadConfig, match="takes no preset: leave ':huge' out"):
    run.configured(f"{quickstart}:huge", [])


def test_a_missing_file_is_told_what_lies_beside_it(tmp_path):
  written(tmp_path, OWN)
  with pytest.raises(BadConfig, match=r"no such file; did you mean 'mine\.py'"):
    run.configured(f"{tmp_path}/mnie.py", [])


def test_a_missing_file_is_told_where_configs_are():
  with pytest.raises(BadConfig, match="no such file.*aigc_jax.presets"):
    run.configured("nowhere.py", [])


def test_a_config_imports_its_sibling_but_never_in_place_of_a_library(tmp_path):
  written(tmp_path, "DIM = 384\n", "my_widths.py")
  written(tmp_path, "raise SystemExit('not me')\n", "optax.py")
  path = written(
    tmp_path, "import optax\nimport my_widths\n" + OWN.replace("256",
    "my_widths.DIM"),
  )  # fmt: skip
  before = list(sys.path)
  try:
    assert run.configured(path, [])["model"]["dim"] == 384
  finally:
    sys.path[:] = before


@pytest.mark.slow
def test_an_own_config_needs_the_installed_package_alone(tmp_path):
  """Installed is what setup.py names; the clone's configs/ is not."""
  from setuptools import find_packages  # takes a second

  found = find_packages(str(ROOT), include=["aigc_jax", "aigc_jax.*"])
  assert "aigc_jax.presets" in found
  site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
  site.mkdir(), elsewhere.mkdir()
  (site / "aigc_jax").symlink_to(ROOT / "aigc_jax")
  written(
    elsewhere,
    "from aigc_jax.presets import llama\n"
    "import mine\n"
    "def get_config():\n"
    "  config = llama.get_config('llama32_1b,stdlib')\n"
    "  config.model.dim = mine.get_config().model.dim\n"
    "  return config\n",
    "his.py",
  )
  written(elsewhere, OWN)
  done = subprocess.run(
    [sys.executable, "-m", "aigc_jax.train", "--config=his.py",
     "--print_config"],
    cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)},
    capture_output=True, text=True, timeout=600,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)["model"]["dim"] == 256


@pytest.mark.parametrize("folder", ["12:30:05", "a.py:b", "x.py.d:1"])
def test_a_folder_may_have_a_colon_in_its_name(tmp_path, folder):
  """Such as that of a time of day, in which a sweep writes its configs."""
  text = OWN.replace("get_config()", "get_config(preset='')").replace(
    "256", "len(preset)"
  )
  (tmp_path / folder).mkdir()
  path = written(tmp_path / folder, text)
  assert run.configured(path, [])["model"]["dim"] == 0
  assert run.configured(f"{path}:one,two", [])["model"]["dim"] == 7
  assert run.place_of(f"{path}:one", "model.dim").startswith(f"{path}, line")
  config = tmp_path / folder / "config.json"
  config.write_text(json.dumps({"seed": 3}))
  assert run.script.load(str(config)) == {"seed": 3}


def test_a_config_of_the_clone_is_named_from_any_folder(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(BadConfig) as refusal:
    script.load("configs/clip.py:digits")
  (path,) = re.findall(r"there is (/\S+\.py);", str(refusal.value))
  assert script.load(f"{path}:digits")["steps"] == 600
  with pytest.raises(BadConfig, match="a clone has some"):
    script.load("configs/clipp.py")
