"""Laws of utterances as data: files, stores, batches, held-out sets."""

import json
import math
import re
import struct
import sys
import wave

import numpy as np
import pytest

from aigc_jax.data.draw import Draw
from aigc_jax.data.sound import Sound
from aigc_jax.data.sound.augmenting import Augment, at_speed
from aigc_jax.data.sound.decoding import RATE, Unusable, decoded, wav
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.presets import ctc
from aigc_jax.trainer import changes

MODEL = dict(vocab=257, start_token=None)
WORDS = ("one", "two", "three", "four", "five", "six", "seven")


def silent(text) -> None:
  """Says nothing."""


def tone(n: int, seed: int = 0, channels: int = 1) -> np.ndarray:
  """(n, channels) int16, nowhere at the end of its scale."""
  draw = np.random.default_rng(seed)
  return draw.integers(-20_000, 20_000, (n, channels)).astype(np.int16)


def file_of(data: bytes, tag: int, bits: int, channels=1, rate=RATE) -> bytes:
  width = channels * bits // 8
  head = struct.pack("<HHIIHH", tag, channels, rate, rate * width, width, bits)
  parts = b"fmt " + struct.pack("<I", 16) + head
  parts += b"LIST" + struct.pack("<I", 3) + b"abc\0"  # of an odd size
  parts += b"data" + struct.pack("<I", len(data)) + data
  return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Three speakers of seven utterances each, the last ones at 8 kHz."""
  top = tmp_path_factory.mktemp("speech")
  for k, speaker in enumerate(("ann", "bob", "cy")):
    (top / speaker).mkdir()
    for i, word in enumerate(WORDS):
      rate = 8000 if speaker == "cy" else RATE
      sound = wav(tone(rate // 10 + 160 * i, 10 * k + i)[:, 0], rate)
      (top / speaker / f"{i}.wav").write_bytes(sound)
      (top / speaker / f"{i}.txt").write_text(f" {word}\n")
  return top


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("root")


def kind_of(path, root, **change) -> Sound:
  keys = dict(
    sources=[dict(kind="folder", path=str(path))], tokenizer="bytes",
    tokenizer_vocab=257, batch=4, seconds=0.3, target_length=8,
    channels="mix", shuffle=True, validation=0.3, split_by="file",
    most_damaged=0.0, root=str(root), skip_steps=(),
  )  # fmt: skip
  return Sound(**keys | change)


@pytest.mark.parametrize(
  ("kind", "bits", "of"),
  [
    (np.uint8, 8, lambda x: x // 256 + 128),
    (np.int16, 16, lambda x: x),
    (np.int32, 32, lambda x: x.astype(np.int64) << 16),
    (np.float32, 32, lambda x: x / 32768),
    (np.float64, 64, lambda x: x / 32768),
  ],
)
def test_whatever_its_numbers_a_wav_is_what_was_written(kind, bits, of):
  whole = tone(500)[:, 0].astype(np.int64)
  data = of(whole).astype(kind).tobytes()
  tag = 3 if np.dtype(kind).kind == "f" else 1
  found, notes = decoded(file_of(data, tag, bits), "refuse")
  assert found.dtype == np.int16 and notes == []
  np.testing.assert_array_equal(
    found, whole // 256 * 256 if bits == 8 else whole
  )


def test_24_bits_and_the_long_form_of_a_head_are_read():
  whole = tone(300)[:, 0].astype(np.int64)
  packed = b"".join(struct.pack("<i", x << 8)[:3] for x in whole.tolist())
  np.testing.assert_array_equal(
    decoded(file_of(packed, 1, 24), "mix")[0], whole
  )
  head = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 0)
  head += struct.pack("<H", 1) + bytes(14)
  body = whole.astype("<i2").tobytes()
  data = b"RIFF" + struct.pack("<I", 0) + b"WAVE"
  data += b"fmt " + struct.pack("<I", len(head)) + head
  data += b"data" + struct.pack("<I", len(body)) + body
  np.testing.assert_array_equal(decoded(data, "mix")[0], whole)


def test_what_is_written_is_what_others_read(tmp_path):
  sound = tone(777)[:, 0]
  (tmp_path / "x.wav").write_bytes(wav(sound))
  with wave.open(str(tmp_path / "x.wav")) as file:
    assert file.getframerate() == RATE and file.getnchannels() == 1
    read = np.frombuffer(file.readframes(999), "<i2")
  np.testing.assert_array_equal(read, sound)
  np.testing.assert_array_equal(decoded(wav(sound), "mix")[0], sound)


def test_flac_is_the_sound_that_was_packed(tmp_path):
  soundfile = pytest.importorskip("soundfile")
  sound = tone(4000)[:, 0]
  path = tmp_path / "x.flac"
  soundfile.write(path, sound, 48_000 // 3, subtype="PCM_16")
  data = path.read_bytes()
  found, notes = decoded(data, "mix")
  assert notes == []
  np.testing.assert_array_equal(found, sound)
  for bad in (data[: len(data) // 2], data[:60], data[:-40]):
    with pytest.raises(Unusable, match="damaged|truncated"):
      decoded(bad, "mix")


def test_flac_without_its_library_is_refused_with_the_way_out(monkeypatch):
  monkeypatch.setitem(sys.modules, "soundfile", None)
  with pytest.raises(BadConfig, match=r"aigc_jax\[sound\]"):
    decoded(b"fLaC" + bytes(40), "mix")


def test_other_rates_and_channels_become_one_and_are_told():
  at = np.arange(4410) / 44_100
  hum = np.rint(9000 * np.sin(2 * np.pi * 440 * at)).astype(np.int16)
  both = np.stack([hum, np.zeros_like(hum)], axis=1)
  found, notes = decoded(file_of(both.tobytes(), 1, 16, 2, 44_100), "mix")
  assert len(found) == 1600 and len(notes) == 2
  expected = 4500 * np.sin(2 * np.pi * 440 * np.arange(1600) / RATE)
  middle = slice(100, 1500)
  assert np.max(np.abs(found[middle] - expected[middle])) < 30
  with pytest.raises(Unusable, match="channels='mix'"):
    decoded(file_of(both.tobytes(), 1, 16, 2, 44_100), "refuse")


def test_sound_at_the_end_of_its_scale_is_told():
  loud = np.clip(3 * tone(2000)[:, 0].astype(int), -32768, 32767)
  found, notes = decoded(wav(loud.astype(np.int16)), "mix")
  assert "clipped" in notes[0] and len(found) == 2000


GOOD = wav(tone(400)[:, 0])
BROKEN = {
  "empty": (b"", "an empty file"),
  "no sound": (wav(np.zeros(0, np.int16)), "no samples"),
  "zeros": (wav(np.zeros(9, np.int16)), "nothing but zeros"),
  "truncated": (GOOD[:-100], "700 bytes of 800"),
  "head alone": (GOOD[:36], "without sound"),
  "streamed": (
    GOOD.replace(struct.pack("<I", 800), struct.pack("<I", 2**32 - 1)),
    "never written",
  ),
  "mu-law": (file_of(b"abcd", 7, 8), "mu-law in 8 bits"),
  "half a sample": (file_of(b"abc", 1, 16), "middle of a sample"),
  "nan": (file_of(struct.pack("<f", np.nan), 3, 32), "not finite"),
  "no rate": (file_of(b"abcd", 1, 16, rate=0), "0 Hz"),
  "an mp3": (b"ID3\4" + GOOD, "MP3 file: convert"),
  "text": (b"hello", "neither WAV nor FLAC"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_sound_is_refused_by_name(name, folder, tmp_path):
  data, why = BROKEN[name]
  with pytest.raises(Unusable, match=why):
    decoded(data, "mix")
  top = tmp_path / "speech"
  for i in range(6):
    (top / "ann").mkdir(parents=True, exist_ok=True)
    (top / "ann" / f"{i}.wav").write_bytes(data if i == 3 else GOOD)
    (top / "ann" / f"{i}.txt").write_text("one")
  one = kind_of(top, tmp_path / "root", validation=0.0)
  with pytest.raises(BadData, match=f"{why}.*ann/3.wav") as refused:
    one.stream(seed=0, model=MODEL, say=silent)
  assert "--config.data.most_damaged=0.167" in str(refused.value)
  said = []
  some = kind_of(top, tmp_path / "root", validation=0.0, most_damaged=0.167)
  stream = some.stream(seed=0, model=MODEL, say=said.append)
  assert len(stream.views[0]) == 5
  assert "ann/3.wav" in "\n".join(said)


def test_a_missing_or_empty_transcript_and_missing_sound_are_told(tmp_path):
  top = tmp_path / "speech"
  top.mkdir()
  for name in ("a", "b", "c", "d"):
    (top / f"{name}.wav").write_bytes(GOOD)
  (top / "c.txt").write_text(" \n")
  (top / "d.txt").write_text("one")
  keys = dict(validation=0.0, root=tmp_path / "root")
  with pytest.raises(BadData, match="without a transcript: a.wav, b.wav"):
    kind_of(top, **keys).stream(seed=0, model=MODEL, say=silent)
  rows = [dict(audio="a.wav", text="one"), dict(audio="z.wav", text="two")]
  table = top / "all.jsonl"
  table.write_text("".join(json.dumps(row) + "\n" for row in rows))
  source = dict(kind="table", path=str(table), audio="audio", text="text")
  with pytest.raises(BadData, match="transcript and no sound: z.wav"):
    kind_of(top, **keys, sources=[source]).stream(
      seed=0, model=MODEL, say=silent
    )
  source["text"] = "txt"
  with pytest.raises(BadData, match="did you mean 'text'"):
    kind_of(top, **keys, sources=[source]).stream(
      seed=0, model=MODEL, say=silent
    )
  rows[1] = rows[0]
  table.write_text("".join(json.dumps(row) + "\n" for row in rows))
  source["text"] = "text"
  with pytest.raises(BadData, match="'a.wav' is there twice"):
    kind_of(top, **keys, sources=[source]).stream(
      seed=0, model=MODEL, say=silent
    )


def of_table(top, rows, **keys) -> Sound:
  table = top / "all.jsonl"
  table.write_text(
    "".join(json.dumps(dict(audio=a, text=t)) + "\n" for a, t in rows)
  )
  source = dict(kind="table", path=str(table), audio="audio", text="text")
  return kind_of(top, top / "root", sources=[source], validation=0.0, **keys)


@pytest.mark.parametrize("other", ["./ann/a.wav", "ann//a.wav", "{}/ann/a.wav"])
def test_a_file_that_two_rows_name_otherwise_is_there_twice(other, tmp_path):
  (tmp_path / "ann").mkdir()
  (tmp_path / "ann" / "a.wav").write_bytes(GOOD)
  rows = [("ann/a.wav", "one"), (other.format(tmp_path), "two")]
  with pytest.raises(BadData, match=r"is there twice, as 'ann/a.wav' too"):
    of_table(tmp_path, rows).stream(seed=0, model=MODEL, say=silent)


@pytest.mark.parametrize("name", ["./ann/a.wav", "{}/ann/a.wav"])
def test_a_name_that_tells_no_speaker_is_refused(name, tmp_path):
  (tmp_path / "ann").mkdir()
  (tmp_path / "ann" / "a.wav").write_bytes(GOOD)
  keys = dict(speakers=True, batch=1)
  rows = [(name.format(tmp_path), "one")]
  with pytest.raises(BadData, match="tells none: write names from the table's"):
    of_table(tmp_path, rows, **keys).stream(seed=0, model=MODEL, say=silent)
  made = of_table(tmp_path, [("ann/a.wav", "one")], **keys)
  view = made.stream(seed=0, model=MODEL, say=silent).views[0]
  assert view.store.about["speakers"] == ["ann"]


def librispeech(top, text: str) -> Sound:
  (top / "1").mkdir(exist_ok=True)
  (top / "1" / "a.wav").write_bytes(GOOD)
  (top / "1" / "1.trans.txt").write_text(text)
  source = dict(kind="librispeech", path=str(top))
  return kind_of(
    top, top / "root", sources=[source], validation=0.0, batch=1,
    target_length=64,
  )  # fmt: skip


def test_a_transcript_is_whole_whatever_characters_are_in_it(tmp_path):
  made = librispeech(tmp_path, "a one\u2028two\x85three\x0cfour\n")
  stream = made.stream(seed=0, model=MODEL, say=silent)
  assert stream.views[0].utterance(0)[1] == "one two three four"


@pytest.mark.parametrize("name", ["/etc/passwd", "/", "../../x"])
def test_a_transcript_of_what_lies_elsewhere_is_refused(name, tmp_path):
  with pytest.raises(BadData, match=r"trans.txt line 2: .* leads out of"):
    librispeech(tmp_path, f"a one\n{name} two\n").stream(
      seed=0, model=MODEL, say=silent
    )


def everything(found) -> dict[bytes, str]:
  """{its samples: its text} of the rows of a set."""
  seen = {}
  for i in range(found.batches):
    batch = found.rows(i, slice(None))
    for audio, n, ids, w in zip(
      batch["audio"], batch["audio_lengths"], batch["targets"],
      batch["weights"], strict=True,
    ):  # fmt: skip
      assert not audio[n:].any()
      if n:
        text = bytes(ids[w > 0][:-1].astype(np.uint8)).decode()
        assert ids[w > 0][-1] == 256
        seen[audio[:n].tobytes()] = text
  return seen


def test_every_utterance_is_in_one_split_with_its_text(folder, root):
  sound = kind_of(folder, root)
  train, held, both = (
    everything(sound.heldout(split=split, model=MODEL, say=silent))
    for split in ("train", "validation", "all")
  )
  assert train and held and not train.keys() & held.keys()
  assert train | held == both and len(both) == 21
  for path in folder.glob("*/*.wav"):
    samples, _ = decoded(path.read_bytes(), "mix")
    assert (
      both[samples.tobytes()] == path.with_suffix(".txt").read_text().strip()
    )


def test_speakers_or_texts_are_held_out_as_a_whole(folder, root):
  views = {}
  for by in ("folder", "text"):
    sound = kind_of(folder, root, split_by=by, validation=0.5)
    views[by] = [
      everything(sound.heldout(split=split, model=MODEL, say=silent))
      for split in ("train", "validation")
    ]
  train, held = views["text"]
  assert not set(train.values()) & set(held.values())
  train, held = views["folder"]
  assert {len(train), len(held)} == {7, 14}


def test_each_way_to_write_transcripts_gives_the_same(folder, root, tmp_path):
  names = sorted(p.relative_to(folder) for p in folder.glob("*/*.wav"))
  texts = [(folder / n).with_suffix(".txt").read_text().strip() for n in names]
  pairs = list(zip(names, texts, strict=True))
  jsonl, tsv = folder / "all.jsonl", folder / "all.tsv"
  jsonl.write_text(
    "".join(json.dumps(dict(clip=str(n), said=t)) + "\n" for n, t in pairs)
  )
  tsv.write_text(
    "age\tclip\tsaid\n" + "".join(f'7"\t{n}\t{t}\n' for n, t in pairs)
  )
  for speaker in ("ann", "bob", "cy"):
    (folder / speaker / f"{speaker}.trans.txt").write_text(
      "".join(f"{n.stem} {t}\n" for n, t in pairs if n.parts[0] == speaker)
    )
  columns = dict(audio="clip", text="said")
  sources = [
    dict(kind="folder", path=str(folder)),
    dict(kind="table", path=str(jsonl), **columns),
    dict(kind="table", path=str(tsv), **columns),
    dict(kind="librispeech", path=str(folder)),
  ]
  found = []
  for source in sources:
    sound = kind_of(folder, tmp_path, sources=[source])
    found.append(
      everything(sound.heldout(split="all", model=MODEL, say=silent))
    )
  assert all(one == found[0] and len(one) == 21 for one in found)


def test_a_row_is_the_same_whoever_asks_for_it(folder, root):
  def stream():
    return kind_of(folder, root).stream(seed=3, model=MODEL, say=silent)

  sound, whole = kind_of(folder, root), stream().rows(5, slice(None))
  assert {k: (x.shape, x.dtype) for k, x in whole.items()} == {
    k: (a.shape, a.dtype) for k, a in sound.spec.items()
  }
  for rows in ([1], [3, 0]):
    part = stream().rows(5, np.array(rows))
    for key, x in part.items():
      np.testing.assert_array_equal(x, whole[key][rows])
  # Each text is written after one token, and ends in another.
  assert (whole["tokens"][:, 0] == 256).all()
  np.testing.assert_array_equal(
    whole["tokens"][:, 1:], whole["targets"][:, :-1]
  )


def test_a_held_out_set_is_found_again_without_its_source(folder, root):
  sound = kind_of(folder, root)
  tokenizer = sound.find_tokenizer()
  how = dict(split="validation", model=MODEL, tokenizer=tokenizer)
  held = sound.heldout(**how, say=silent)
  gone = kind_of("/nowhere", root)
  again = gone.known(**how, batches=None, fingerprints=["x", held.fingerprint])
  assert again.fingerprint == held.fingerprint
  assert everything(again) == everything(held)
  other = kind_of("/nowhere", root, target_length=7)
  assert other.known(
    **how, batches=None, fingerprints=[held.fingerprint]
  ) is None  # fmt: skip


def test_what_does_not_fit_a_row_is_left_out_and_told(folder, root):
  said = []
  sound = kind_of(folder, root, seconds=0.14, target_length=5)
  all_of = sound.heldout(split="all", model=MODEL, say=said.append)
  told = said[-1]
  assert "longer than 0.14 seconds" in told and "more than 5 tokens" in told
  assert set(everything(all_of).values()) <= {"one", "two", "four", "five"}
  with pytest.raises(BadData, match="data.seconds"):
    kind_of(folder, root, seconds=0.05).heldout(
      split="all", model=MODEL, say=silent
    )
  # What aligns one token to a step has too few of them for "three".
  ctc = dict(vocab=257, blank=256, stride=3)
  whole = kind_of(folder, root).heldout(split="all", model=ctc, say=said.append)
  assert "too short for their text" in said[-1]
  assert "three" not in everything(whole).values()


@pytest.mark.parametrize(
  ("change", "model", "word"),
  [
    (dict(seconds=3.0), dict(MODEL, seconds=2.0), "data.seconds=2.0"),
    (dict(target_length=9), dict(MODEL, position_length=8), "target_length=8"),
    ({}, dict(vocab=200), "model.vocab=257"),
    ({}, dict(vocab=257, blank=0), "model.blank=256"),
    (dict(augment=dict(times=1)), MODEL, "the model makes none"),
    (dict(augment=dict(bands=1)), MODEL | dict(bins=20), "band_width=6"),
  ],
)
def test_a_model_that_cannot_take_it_is_refused(
  change, model, word, folder, root
):
  with pytest.raises(BadConfig, match=word):
    kind_of(folder, root, **change).check_model(model)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(channels="left"), "mix"),
    (dict(split_by="speaker"), "folder"),
    (dict(seconds=0.0), "seconds"),
    (dict(validation=1.0), "validation"),
    (dict(sources=[dict(kind="folder", file="x")]), "path"),
    (dict(sources=[dict(kind="floder", path="x")]), "did you mean 'folder'"),
    (dict(augment=dict(speed=51)), "data.augment.speed=51"),
    (dict(augment=dict(time_share=0.0)), "data.augment.time_share=0.0"),
    (dict(augment=dict(tempo=5)), "tempo"),
  ],
)
def test_settings_that_no_data_could_mend_are_refused(change, word, root):
  with pytest.raises(BadConfig, match=word):
    kind_of("x", root, **change)


def test_a_tokenizer_is_trained_on_what_is_said(tmp_path):
  draw, top = np.random.default_rng(0), tmp_path / "speech"
  top.mkdir()
  for i in range(9):
    (top / f"{i}.wav").write_bytes(GOOD)
    said = " ".join(WORDS[k] for k in draw.integers(0, 7, 40))
    (top / f"{i}.txt").write_text(f"{said} {'abcdefghi'[i:]}")
  sound = kind_of(
    top, tmp_path / "root", tokenizer="sentencepiece", tokenizer_vocab=310
  )
  tokenizer = sound.find_tokenizer(silent)
  assert tokenizer.vocab == 310
  assert tokenizer.decode(tokenizer.encode("seven two")) == "seven two"


def test_a_batch_says_who_speaks_by_the_first_folder(folder, root):
  sound = kind_of(folder, root, speakers=True, draw=True)
  model = MODEL | dict(speakers=3)
  names = ("ann", "bob", "cy")
  of = {
    decoded(path.read_bytes(), "mix")[0].tobytes(): names.index(
      path.parent.name
    )
    for path in folder.glob("*/*.wav")
  }
  for split in ("train", "validation"):  # numbers are of both
    held = sound.heldout(split=split, model=model, say=silent)
    seen = set()
    for i in range(held.batches):
      batch = held.rows(i, slice(None))
      for audio, n, who in zip(
        batch["audio"], batch["audio_lengths"], batch["speakers"], strict=True
      ):
        if n:
          assert of[audio[:n].tobytes()] == who
          seen.add(int(who))
    assert seen == {0, 1, 2}
    view = held.views[0]
    for i in range(len(view)):
      assert view.speaker(i) == of[view.utterance(i)[0].tobytes()]
  stream = sound.stream(seed=0, model=model, say=silent)
  a, b = (stream.rows(step, slice(None)) for step in (0, 1))
  assert a["draw"].shape == (4, 2) and not np.array_equal(a["draw"], b["draw"])
  assert set(a) == set(sound.spec)
  plain = kind_of(folder, root)
  assert not {"speakers", "draw"} & set(plain.spec)
  assert plain.stream(seed=0, model=MODEL, say=silent).fingerprint != (
    stream.fingerprint
  )


def test_speakers_that_cannot_be_told_apart_are_refused(folder, root):
  source = dict(kind="folder", path=str(folder))
  with pytest.raises(BadConfig, match="folder for each speaker"):
    kind_of(folder, root, speakers=True, sources=[source, source])
  sound = kind_of(folder, root, speakers=True)
  with pytest.raises(BadConfig, match=r"--config.model.speakers=3"):
    sound.stream(seed=0, model=MODEL | dict(speakers=2), say=silent)
  with pytest.raises(BadConfig, match="--config.data.speakers=True"):
    kind_of(folder, root).check_model(MODEL | dict(speakers=2))
  with pytest.raises(BadConfig, match="have no numbers"):
    sound.check_heldout("x", dict(split="all", sources=[source]))


AUGMENT = dict(speed=10, gain=6.0, times=2, time_width=9, bands=1, band_width=5)


def test_an_utterance_is_changed_by_its_place_and_the_seed_alone(folder, root):
  model = MODEL | dict(bins=20)

  def stream(seed=3, **augment):
    kind = kind_of(folder, root, augment=AUGMENT | augment)
    return kind, kind.stream(seed=seed, model=model, say=silent)

  kind, one = stream()
  whole = one.rows(5, slice(None))
  assert {k: (x.shape, x.dtype) for k, x in whole.items()} == {
    k: (a.shape, a.dtype) for k, a in kind.spec.items()
  }
  for rows in ([1], [3, 0]):
    part = stream()[1].rows(5, np.array(rows))
    for key, x in part.items():
      np.testing.assert_array_equal(x, whole[key][rows])
  plain = kind_of(folder, root).stream(seed=3, model=model, say=silent)
  as_is = plain.rows(5, slice(None))
  np.testing.assert_array_equal(as_is["targets"], whole["targets"])
  assert (as_is["audio_lengths"] != whole["audio_lengths"]).any()
  assert (as_is["audio"] != whole["audio"]).any()
  # Another time, another change; another setting, another run.
  again = stream(seed=4)[1].rows(5, slice(None))
  assert (again["masks"] != whole["masks"]).any()
  prints = {
    s.fingerprint for s in (one, plain, stream(gain=5.0)[1], stream(times=1)[1])
  }
  assert len(prints) == 4
  # What is set but not used decides nothing.
  still = kind_of(folder, root, augment=dict(time_width=7))
  assert (
    still.stream(seed=3, model=model, say=silent).fingerprint
    == plain.fingerprint
  )


def test_held_out_utterances_are_heard_as_they_are(folder, root):
  model = MODEL | dict(bins=20)
  found = [
    kind_of(folder, root, augment=augment).heldout(
      split="all", model=model, say=silent
    )
    for augment in ({}, AUGMENT)
  ]
  assert found[0].fingerprint == found[1].fingerprint
  plain, other = (one.rows(0, slice(None)) for one in found)
  assert not other.pop("masks").any()
  for key, x in plain.items():
    np.testing.assert_array_equal(other[key], x)


def test_masks_lie_within_the_utterance_and_have_all_sizes():
  how = Augment(times=3, time_width=40, time_share=0.5, bands=2, band_width=8)
  lengths = np.arange(1, 4001) * 7
  draw = Draw(0, np.arange(4000), np.arange(4000))
  masks = how.masks(lengths, 30, draw)
  assert masks.shape == (4000, 5, 4)
  frames = -(-lengths[:, None] // 160)
  first, wide, low, high = np.moveaxis(masks, -1, 0)
  assert (first >= 0).all() and (first + wide <= frames).all()
  assert (low >= 0).all() and (low + high <= 30).all()
  times, bands = masks[:, :3], masks[:, 3:]
  assert (times[..., 1] <= np.minimum(40, frames // 2)).all()
  assert (times[..., 2:] == (0, 30)).all()
  assert (bands[..., :2] == np.stack([0 * frames, frames], -1)).all()
  assert set(bands[..., 3].ravel()) == set(range(9))
  long = times[frames[:, 0] >= 80]
  assert set(long[..., 1].ravel()) == set(range(41))


@pytest.mark.parametrize("percent", [-10, 10])
def test_faster_is_shorter_and_higher_and_nothing_outgrows_its_row(percent):
  at = np.arange(16_000)
  clip = (9000 * np.sin(2 * np.pi * 440 * at / RATE)).astype(np.int16)
  found = at_speed(clip, percent, 20_000)
  assert len(found) == math.ceil(16_000 * 100 / (100 + percent))
  peak = np.abs(np.fft.rfft(found.astype(float))).argmax() * RATE / len(found)
  assert peak == pytest.approx(440 * (1 + percent / 100), rel=5e-3)
  assert np.abs(found).max() == pytest.approx(9000, rel=0.05)
  assert len(at_speed(clip, -10, 17_000)) <= 17_000
  np.testing.assert_array_equal(at_speed(clip, -10, 16_000), clip)


def test_a_run_of_before_augmentations_goes_on_as_one_without():
  config = ctc.get_config("small").to_dict()
  old = config | dict(data={k: config["data"][k] for k in config["data"]})
  del old["data"]["augment"]
  assert not changes.changes(old, config)
  config["data"]["augment"]["speed"] = 10
  (change,) = changes.changes(old, config)
  assert (change.key, change.old, change.new) == ("data.augment.speed", 0, 10)


@pytest.mark.parametrize("by", ["file", "folder", "text"])
def test_where_a_share_holds_out_nothing_one_that_does_is_told(
  folder, tmp_path, by
):
  way = r"of the split 'validation': .*--config.data.validation=([\d.]+) "
  few = kind_of(folder, tmp_path, validation=1e-9, split_by=by)
  with pytest.raises(BadData, match=way) as refusal:
    few.heldout(split="validation", model=MODEL, say=silent)
  told = float(re.search(way, str(refusal.value))[1])
  mended = kind_of(folder, tmp_path, validation=told, split_by=by)
  assert len(mended.heldout(split="validation", model=MODEL, say=silent)) > 0
