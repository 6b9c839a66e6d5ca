"""Keys set on the command line, and what is said where they cannot be."""

import re

import pytest

from aigc_jax import command, run
from aigc_jax.errors import BadConfig
from aigc_jax.presets import skeleton
from aigc_jax.run import overrides
from aigc_jax.run.settings import plain_of


def changed(*words: str) -> dict:
  left, settings = command._without_keys(["train", *words])
  assert left == ["train"]
  return overrides.apply(plain_of(skeleton()), settings)


@pytest.mark.parametrize(
  ("word", "path", "value"),
  [
    ("--config.steps=7", "steps", 7),
    ("--config.steps=2e3", "steps", 2000),
    ("-config.optim.learning_rate=1", "optim.learning_rate", 1.0),
    ("--config.optim.decay_steps=None", "optim.decay_steps", None),
    ("--config.optim.decay_steps=50", "optim.decay_steps", 50),
    ("--config.optim.clip=None", "optim.clip", None),
    ("--config.data.shuffle=no", "data.shuffle", False),
    ("--noconfig.data.shuffle", "data.shuffle", False),
    ("--config.data.segments", "data.segments", True),
    ("--config.data.path=a b/*.md", "data.path", "a b/*.md"),
    ("--config.compute.remat=none", "compute.remat", "none"),
    ("--config.model.windows=(512, None)", "model.windows", [512, None]),
    ("--config.data.skip_steps=((3, 5),)", "data.skip_steps", [[3, 5]]),
    (
      "--config.model.rotary_scaling=dict(kind='linear', factor=2.0)",
      "model.rotary_scaling",
      dict(kind="linear", factor=2.0),
    ),
  ],
)
def test_a_value_is_read_by_the_type_of_what_it_replaces(word, path, value):
  found = changed(word)
  for part in path.split("."):
    found = found[part]
  assert found == value and type(found) is type(value)


def test_key_and_value_may_stand_apart():
  assert changed("--config.steps", "7")["steps"] == 7
  both = changed("--config.data.segments", "--config.steps=3")
  assert both["data"]["segments"] is True and both["steps"] == 3


def test_a_key_of_a_list_is_set_by_its_number():
  found = changed("--config.data.sources[0].weight=0.5")
  assert found["data"]["sources"][0]["weight"] == 0.5


@pytest.mark.parametrize(
  ("word", "words"),
  [
    ("data.sources[1].weight=0.5", r"data\.sources\[1\] is not there: .* 0 to"),
    ("data.batch[0]=1", r"data\.batch is no list"),
    ("data.batch.x=1", "data.batch has no keys"),
    ("data.bach=3", "did you mean 'batch'"),
    ("learning_rate=3", r"did you mean --config\.optim\.learning_rate=3\?"),
    ("batch_size=3", r"did you mean --config\.data\.batch=3\?"),
    ("data_path=x", r"did you mean --config\.data\.path=x\?"),
    ("sequence_length=3", r"did you mean --config\.data\.length=3\?"),
    ("model.num_layers=3", r"did you mean --config\.model\.layers=3\?"),
    ("model.batch=3", r"did you mean --config\.data\.batch=3\?"),
    ("optim=adam", r"optim is a section: .*--config\.optim\.kind=adam"),
    ("data.shuffle=maybe", "expected true or false"),
    ("steps=many", "steps=many: expected a whole number"),
    ("steps=1.5", "steps=1.5: expected a whole number"),
    ("optim.b1=x", "optim.b1=x: expected a number"),
    ("model.windows=512,", None),
    ("model.windows=512 or", r"model.windows=512 or: expected something like"),
    ("steps", "needs a value: --config.steps=1000"),
    ("a..b=3", "expected --config.section.key=VALUE"),
    ("model.windows=__import__('os')", "expected something like"),
  ],
)
def test_what_cannot_be_set_is_said_in_our_own_words(word, words):
  if words is None:
    assert changed(f"--config.{word}")
    return
  with pytest.raises(BadConfig, match=words):
    changed(f"--config.{word}")


@pytest.mark.parametrize(
  ("word", "words"),
  [
    ("model.rotary_scaling=linear", "rotary_scaling='linear': expected a dict"),
    ("optim.learning_rate=None", "learning_rate=None: expected a number"),
    ("optim.learning_rate=nan", "learning_rate=nan: expected a number"),
    (
      "optim.decay_steps=soon",
      "decay_steps='soon': expected a whole",
    ),
    ("model.dim=None", "model.dim=None: expected a whole number"),
    ("data.batch=None", "data.batch=None: expected a whole number"),
    ("data.shuffle=None", "data.shuffle=None: expected True or False"),
    ("data.skip_steps=((1.5, 2),)", "skip_steps=.*expected a list"),
    ("evaluate.heldout.every_steps=0.5", "expected a whole number"),
    ("model.heads=7", "model.dim=128 is not divisible by model.heads=7"),
  ],
)
def test_a_value_of_another_type_is_refused_by_name(word, words):
  with pytest.raises(BadConfig, match=words):
    run.build(run.read(changed(f"--config.{word}")))


def test_another_kind_brings_its_own_keys(monkeypatch):
  def other(predict, batch, *, z_loss: float, margin: float = 0.5):
    """An objective with a key that tokens has not."""

  monkeypatch.setitem(overrides.OBJECTIVES, "other", other)
  found = changed(
    "--config.objective.margin=2", "--config.objective.kind=other"
  )
  assert found["objective"] == dict(kind="other", z_loss=0.0, margin=2)
  found = changed("--config.objective.kind=other")["objective"]
  assert found["margin"] == 0.5 and "chunk" not in found
  with pytest.raises(BadConfig, match="margin is unknown"):
    changed("--config.objective.margin=2")


def test_another_kind_of_evaluation_or_source_brings_its_own_keys():
  found = changed("--config.evaluate.heldout.kind=samples")
  entry = found["evaluate"]["heldout"]
  assert entry["max_tokens"] == 64 and "batches" not in entry
  run.check_evaluators(run.read(found))
  found = changed(
    "--config.data.sources[0].kind=text", "--config.data.sources[0].path=x.txt"
  )
  assert found["data"]["sources"] == [
    dict(kind="text", path="x.txt", split="train", field="text", weight=1.0)
  ]


def test_a_flag_that_is_a_key_is_told_where_it_is():
  assert run.section_of("learning_rate", skeleton()) == "optim.learning_rate"
  assert run.section_of("steps", skeleton()) == "steps"
  assert run.section_of("workdir", skeleton()) is None


@pytest.mark.parametrize(
  ("given", "kind", "source"),
  [
    ("siglip.py:digits", "folder", dict(path="p", split="train")),
    (
      "clip.py:digits", "table",
      dict(path="p", split="train", image="i", caption="c"),
    ),
    ("vit.py:s16,digits", "folder", dict(path="p", split="train")),
    ("tts.py:digits", "table", dict(path="p", audio="a", text="t")),
    ("transformer.py:base", "gettext", dict(path="p")),
  ],
)  # fmt: skip
def test_a_source_has_the_kinds_of_the_data_that_it_is_of(given, kind, source):
  words = {"kind": kind, **source}
  words = [
    (f"data.sources[0].{key}", value)
    for key, value in words.items()
    if key != "split"  # by default
  ]
  config = overrides.configured(f"configs/{given}", words)
  assert config["data"]["sources"] == [dict(kind=kind, weight=1.0) | source]
  run.data_of(run.read(config))


def test_a_source_is_of_the_kind_of_data_that_the_same_line_sets():
  found = changed(
    "--config.data.sources[0].kind=json", "--config.data.sources[0].path=p",
    "--config.data.kind=pairs", "--config.data.sources[0].source=en",
    "--config.data.sources[0].target=de",
  )  # fmt: skip
  assert found["data"]["sources"] == [
    dict(kind="json", path="p", source="en", target="de", weight=1.0)
  ]


def test_labels_told_by_words_are_of_labelled_images(tmp_path):
  config = overrides.configured(
    "configs/siglip.py:digits",
    [
      ("evaluate.zero_shot.data.sources[0].kind", "folder"),
      ("evaluate.zero_shot.data.sources[0].path", str(tmp_path)),
    ],
  )
  run.check_evaluators(run.read(config))


def test_all_that_another_kind_lacks_is_named_at_once():
  config = changed("--config.data.kind=pairs")
  words = (
    r"keys data\.source_length, data\.target_length, data\.packed, data\.long "
    "are missing: expected a whole number, a whole number, True or False, text"
  )
  with pytest.raises(BadConfig, match=words):
    run.read(config)


@pytest.mark.parametrize(
  ("given", "source"),
  [
    ("quickstart.py", dict(kind="text", path="p")),
    ("vit.py:s16,digits", dict(kind="package", name="digits")),
    ("siglip.py:digits", dict(kind="package", name="digits")),
  ],
)
def test_a_source_that_does_not_say_is_of_the_training_split(given, source):
  def used(entry):
    config = overrides.configured(f"configs/{given}", [])
    config["data"]["sources"] = [entry]
    found = run.data_of(run.read(config))
    return getattr(found, "used_sources", lambda: found.sources)()

  assert used(source) == used(dict(split="train") | source)
  assert used(source)[0]["split"] == "train"


def test_pairs_of_tfds_that_do_not_say_are_of_the_training_split():
  words = dict(kind="tfds", path="p", source="de", target="en")
  words = [(f"data.sources[0].{key}", value) for key, value in words.items()]
  run.data_of(run.read(overrides.configured("configs/transformer.py", words)))
  config = overrides.configured("configs/transformer.py", words)
  del config["data"]["sources"][0]["split"]
  run.data_of(run.read(config))


@pytest.mark.slow
def test_images_of_another_size_and_other_channels_are_set_by_what_is_told():
  words = [("data.channels", "3"), ("data.image_size", "12"), ("steps", "1")]
  for _ in range(4):
    try:
      config = run.read(overrides.configured("configs/siglip.py:digits", words))
      run.build(config, run.make_mesh(config))
      break
    except BadConfig as refusal:
      told = re.findall(r"--config\.(\S+?)=('[^']*'|\d+)", str(refusal))
      told = [(k, v.strip("'")) for k, v in told]
      model = [pair for pair in told if pair[0].startswith("model.")]
      words += model or told
  found = {k: v for k, v in words if k != "steps"}
  assert found["data.std"] == found["data.mean"] == "(0.5,0.5,0.5,)"
  assert found["model.image_size"] == "12" and found["model.channels"] == "3"


def test_an_entry_of_evaluate_is_made_by_its_kind():
  config = overrides.configured(
    "configs/gan.py:tiny,digits",
    [("evaluate.drawn.rows", "2"), ("evaluate.drawn.kind", "images")],
  )
  found = run.read(config)
  run.check_evaluators(found)
  assert found["evaluate"]["drawn"]["rows"] == 2
  assert found["evaluate"]["drawn"]["every_steps"] is None
  with pytest.raises(BadConfig, match="'imges' is unknown; did you mean 'imag"):
    run.check_evaluators(changed("--config.evaluate.drawn.kind=imges"))
  with pytest.raises(BadConfig, match="evaluate.heldot.*did you mean.*heldout"):
    changed("--config.evaluate.heldot.kind=loss")
