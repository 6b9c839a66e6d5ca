"""What is told of a config's data before any of it is read."""

import pytest

from aigc_jax import run
from aigc_jax.run import overrides


def told(given: str, caplog, **changes) -> str:
  """What `note_inputs` logs of a preset with keys set."""
  settings = [(k.replace("__", "."), str(v)) for k, v in changes.items()]
  config = run.read(overrides.configured(f"configs/{given}", settings))
  run.check_inputs(config)
  run.note_inputs(config)
  return caplog.text


def test_rows_of_the_embedding_that_no_text_has_are_told_with_a_way_out(caplog):
  few = dict(data__tokenizer_vocab=404)
  assert "31695 rows of the embedding are of no text" in told(
    "t5.py:small,stdlib", caplog, **few, data__length=570
  )
  assert "--config.model.vocab=512 --config.data.task" in caplog.text
  caplog.clear()
  enough = {"model__vocab": 512, "data__task__first_sentinel": 511}
  assert not told("t5.py:small,stdlib", caplog, **few, **enough)
  assert "36596 rows" in told("transformer.py:base", caplog, **few)


@pytest.mark.parametrize(
  "given",
  ["quickstart.py", "t5.py:base", "transformer.py:base", "gpt2.py:small",
   "siglip.py:digits", "tts.py:digits"],
)  # fmt: skip
def test_of_a_preset_as_it_is_there_is_nothing_to_tell(given, caplog):
  assert not told(given, caplog)
