"""Sound in, text out, by models that write and by models that align."""

import jax
import numpy as np
import pytest

from aigc_jax import evaluate, run, sharding
from aigc_jax.data import tokenizers
from aigc_jax.data.sound.decoding import wav
from aigc_jax.errors import BadConfig, BadData, NonFinite
from aigc_jax.sampling.beam import Beams
from aigc_jax.sampling.transcripts import Greedy, collapsed, transcribed
from aigc_jax.sampling.words import Known
from tests import fresh, seq2seq, sound


@pytest.mark.parametrize(
  ("steps", "text"),
  [
    ([], []),
    ([9, 9], []),
    ([1, 1, 9, 1, 2, 2], [1, 1, 2]),
    ([9, 3, 9, 9, 3, 3, 9], [3, 3]),
  ],
)
def test_of_runs_one_is_left_and_then_no_blanks(steps, text):
  assert collapsed(np.array(steps, int), 9) == text


def loaded_of(style: str, tmp_path, **data) -> run.Loaded:
  """A model of bytes in a run on a folder of noises."""
  keys = sound.STYLES[style] | dict(vocab=257)
  if style == "ctc":
    keys["blank"] = 256
  model = sound.build(style, **keys)
  params = fresh.variables(model, model.example())["params"]
  folder = tmp_path / "speech"
  folder.mkdir(parents=True)
  for i, clip in enumerate(clips(9)):
    (folder / f"{i}.wav").write_bytes(wav(clip))
    (folder / f"{i}.txt").write_text(f"w {i}")
  config = dict(
    kind="sound", sources=[dict(kind="folder", path=str(folder))],
    tokenizer="bytes", tokenizer_vocab=300, batch=2, seconds=0.2,
    target_length=6, channels="mix", shuffle=True, validation=0.4,
    split_by="file", most_damaged=0.0, root=str(tmp_path), skip_steps=[],
  )  # fmt: skip
  mesh = sharding.mesh_of(jax.devices()[0])
  return run.Loaded(
    model, params, tokenizers.Bytes(), {"model": keys, "data": config | data},
    mesh, 7, "tiny",
  )  # fmt: skip


@pytest.mark.slow
def test_what_is_heard_and_no_number_is_no_text(tmp_path):
  loaded = loaded_of("ctc", tmp_path)
  nothing = jax.tree.map(lambda x: np.nan * x, loaded.params)
  hears = Greedy(loaded.model, loaded.params)
  assert len(hears(clips(2))) == 2
  with pytest.raises(NonFinite, match="for the sound"):
    Greedy(loaded.model, nothing)(clips(2))


def clips(n: int) -> list[np.ndarray]:
  draw = np.random.default_rng(0)
  lengths = draw.integers(1600, 3200, n)
  return [draw.integers(-9000, 9000, k).astype(np.int16) for k in lengths]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["ctc", "whisper"])
def test_what_is_heard_in_a_clip_does_not_depend_on_those_beside_it(
  style, tmp_path
):
  loaded = loaded_of(style, tmp_path)
  how = loaded.hearing()

  def heard(some, batch):
    asked = dict(max_tokens=6, batch=batch)
    return list(transcribed(how, loaded.tokenizer, some, **asked))

  some = clips(5)
  whole = heard(some, 4)
  assert len(whole) == 5 and len(set(whole)) > 1
  assert [heard([clip], 4)[0] for clip in some[:2]] == whole[:2]
  with pytest.raises(BadData, match="clip 1: it has no samples"):
    heard([some[0], some[0][:0]], 4)
  if style == "whisper":
    with pytest.raises(BadData, match=r"0\.30 seconds.*hears 0\.2"):
      heard([np.ones(4800, np.int16)], 4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("style", "width"), [("ctc", 0), ("whisper", 0), ("whisper", 2)]
)
def test_word_errors_of_a_held_out_set_are_those_of_its_utterances(
  style, width, tmp_path, monkeypatch
):
  # Texts as long as a model has positions: one of those has the start token.
  loaded = loaded_of(style, tmp_path, target_length=19)

  class Flags:
    batch, beams, length_penalty, words = 4, width, 1.0, ""

  monkeypatch.setattr(evaluate, "FLAGS", Flags)
  data = run.data_of(loaded.config)
  held = data.heldout(split="validation", model=loaded.config["model"])
  found = evaluate.score_sound(loaded, held)
  assert found["wer"].items == found["cer"].items == len(held) > 0
  assert 0 < found["cer"].value
  few = evaluate.score_sound(loaded, held.first(1))
  assert few["wer"].items == 2
  # Sound is not as wide as the model is at each sample.
  evaluate.check_batch(loaded, 2 * 3200 * 4 * 2)


def test_what_makes_no_text_of_sound_is_refused(tmp_path):
  loaded = loaded_of("ctc", tmp_path)
  with pytest.raises(BadConfig, match="beams are of a model that writes"):
    loaded.hearing(Beams(2))
  with pytest.raises(BadConfig, match="say how widely"):
    loaded.hearing(words=Known(["a"]))
  whisper = loaded_of("whisper", tmp_path / "whisper")
  with pytest.raises(BadConfig, match="--words is of a model that says"):
    whisper.hearing(Beams(2), Known(["a"]))
  other = run.Loaded(
    seq2seq.build("t5"), {}, None, {}, loaded.mesh, 0, "translator"
  )
  with pytest.raises(BadConfig, match="take a whisper or a ctc"):
    other.hearing()
