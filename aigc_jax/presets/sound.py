"""What the configs of models that hear share. Not a run by itself."""

from ml_collections import ConfigDict

from aigc_jax.presets.keys import skeleton


def sound() -> ConfigDict:
  """The skeleton for sound with transcripts: its section data.

  The section model is left as it is, for a config to put another.
  """
  config = skeleton()
  config.data = dict(
    kind="sound",
    # Or kind="table" (path: JSON lines, .tsv or .csv; audio, text: columns),
    # "librispeech" (path); mixed by weight. folder: each NAME.wav or NAME.flac
    # below has NAME.txt beside it.
    sources=(dict(kind="folder", path="speech", weight=1.0),),
    tokenizer="bytes",  # or sentencepiece, trained here; x.model; hf:FOLDER
    tokenizer_vocab=4096,  # pieces of a sentencepiece trained here
    batch=32,  # rows of all devices together
    seconds=30.0,  # of a row; longer utterances are left out
    target_length=448,  # tokens of a row; longer texts are left out
    channels="mix",  # of several their mean; refuse: such files are left out
    augment=dict(
      speed=0,  # percent that an utterance is faster or slower, at most
      gain=0.0,  # decibels that it is louder or softer, at most
      times=0,  # SpecAugment's masks over time, and their frames of 10 ms
      time_width=100,
      time_share=1.0,  # of the utterance that one of them has at most
      bands=0,  # those over bands of the spectrogram
      band_width=27,
    ),
    shuffle=True,  # whether utterances come in a random order, new each epoch
    validation=0.02,  # share held out
    split_by="file",  # by whose hash: of its file's name, its folder, its text
    most_damaged=0.01,  # share that may be left out as unusable
    root="~/.cache/aigc_jax",  # where stores are kept
    skip_steps=(),  # steps whose batches are left out
  )
  return config
