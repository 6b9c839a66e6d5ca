"""Files are read within bounds; what is not ours is not written."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aigc_jax import files
from aigc_jax.errors import BadConfig, BadData, StorageFailure

BROKEN = {
  b"[]": "expected a JSON object",
  b'{"a":1,"a":2}': "occurs twice",
  b'{"a":NaN}': "NaN is not JSON",
  b'{"a":-1e999}': "-1e999 is not JSON",
  b'{"a":' + b"9" * 400 + b"}": "is not JSON",
  b'{"a":"\\ud800"}': "half a character",
  b'{"a":' + b"[" * 100_000: "nested too deep",
  b"\xff": "is not JSON",
  b"": "is not JSON",
}


@pytest.mark.parametrize("data", BROKEN)
def test_what_is_no_plain_json_object_is_refused_by_name(data, tmp_path):
  path = tmp_path / "a.json"
  path.write_bytes(data)
  with pytest.raises(BadConfig, match=BROKEN[data]) as refusal:
    files.read_json(path, error=BadConfig)
  assert str(path) in str(refusal.value)


def test_a_pair_of_surrogates_is_a_character():
  assert files.parse_json(b'{"a":"\\ud83e\\udd84"}', "x") == {"a": "\U0001f984"}


def test_a_file_above_its_limit_is_not_read(tmp_path):
  path = tmp_path / "large"
  with open(path, "wb") as file:
    file.truncate(1 << 40)
  with pytest.raises(BadData, match="expected at most 10 bytes"):
    files.content(path, 10)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link"])
@pytest.mark.parametrize("reader", [files.content, files.read_json])
def test_only_a_regular_file_is_read_and_nothing_waits(tmp_path, kind, reader):
  with pytest.raises(BadData, match=f"{tmp_path / 'a'} "):
    reader(special(tmp_path / "a", kind))


def special(path, kind):
  """An entry that is no regular file of its own folder."""
  if kind == "fifo":
    os.mkfifo(path)
  elif kind == "folder":
    path.mkdir()
  elif kind == "link":
    path.symlink_to(victim(path))
  elif kind == "hard link":
    os.link(victim(path), path)
  else:
    path.symlink_to("/dev/zero")
  return path


def victim(path):
  other = path.parent.with_name(f"{path.parent.name}-else")
  other.write_text('{"kept": 1}')
  return other


@pytest.mark.parametrize(
  "kind", ["fifo", "device", "folder", "link", "hard link"]
)
def test_only_a_regular_file_of_this_folder_alone_is_opened(tmp_path, kind):
  path = special(tmp_path / "a", kind)
  with pytest.raises(StorageFailure, match="remove it"):
    files.open_own(path, os.O_RDWR | os.O_TRUNC)
  with pytest.raises(StorageFailure):
    files.append(path, b"more")
  if "link" in kind:
    assert victim_of(path).read_text() == '{"kept": 1}'


def victim_of(path):
  return path.parent.with_name(f"{path.parent.name}-else")


def test_a_file_of_ours_is_made_kept_and_emptied_on_request(tmp_path):
  path = tmp_path / "a"
  os.close(files.open_own(path, os.O_RDWR))
  files.append(path, b"one\n")
  os.close(files.open_own(path, os.O_RDWR))
  assert path.read_bytes() == b"one\n"
  os.close(files.open_own(path, os.O_RDWR | os.O_TRUNC))
  assert path.read_bytes() == b""


def test_a_write_replaces_a_link_and_leaves_what_it_names(tmp_path):
  path = special(tmp_path / "a", "link")
  files.write_json(path, {"new": 1})
  assert not path.is_symlink() and files.read_json(path) == {"new": 1}
  assert victim_of(path).read_text() == '{"kept": 1}'
  assert os.listdir(tmp_path) == ["a"]


def test_a_link_planted_where_a_write_begins_is_not_followed(tmp_path):
  path = tmp_path / "a"
  files.unique(path).symlink_to(victim(path))
  files.write_bytes(path, b"x")
  assert victim_of(path).read_text() == '{"kept": 1}'


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
  path = tmp_path / "a"
  files.write_text(path, "old")

  def full(fd):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(StorageFailure, match=f"{path} .*No space left"):
    files.write_text(path, "new")
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_an_output_goes_where_the_user_says(tmp_path):
  target = tmp_path / "target"
  target.write_text("old")
  target.chmod(0o600)
  (tmp_path / "link").symlink_to(target)
  files.write_out(tmp_path / "link", "new")
  assert (tmp_path / "link").is_symlink() and target.read_text() == "new"
  assert stat.S_IMODE(target.stat().st_mode) == 0o600
  files.write_out("/dev/null", "nothing")
  os.mkfifo(tmp_path / "pipe")
  read = []
  reader = threading.Thread(
    target=lambda: read.append((tmp_path / "pipe").read_text())
  )
  reader.start()
  files.write_out(tmp_path / "pipe", "through")
  reader.join()
  assert read == ["through"]
  with pytest.raises(StorageFailure, match="--out="):
    files.write_out(tmp_path / "none" / "a", "x")


def test_lines_tell_which_of_them_are_broken(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"a":1}\n[1]\n' + b"x" * 50 + b'\n\xff\n{"a":2}\n{"a":')
  lines = list(files.read_lines(path, longest=20))
  assert [line.row for line in lines] == [
    {"a": 1}, None, None, None, {"a": 2}, None,
  ]  # fmt: skip
  assert [line.offset for line in lines] == [0, 8, 12, 63, 65, 73]
  assert all(line.fault for line in lines if line.row is None)


def test_a_lock_is_a_file_of_ours(tmp_path):
  special(tmp_path / "lock", "link")
  with (
    pytest.raises(StorageFailure, match="is a link to"),
    files.locked(tmp_path / "lock", print),
  ):
    pass
  assert victim_of(tmp_path / "lock").read_text() == '{"kept": 1}'


def test_a_lock_that_is_held_may_be_of_the_same_run(tmp_path):
  said, path = [], tmp_path / "lock"
  free = threading.Event()

  def say(line):
    said.append(line)
    free.set()

  def second():
    with files.locked(path, say):
      pass

  with files.locked(path, said.append):
    other = threading.Thread(target=second)
    other.start()
    assert free.wait(60)
  other.join(60)
  assert not other.is_alive()
  assert said == [
    f"another process, perhaps of this very run, holds {path}; waiting for it"
  ]


def test_a_folder_of_ours_is_no_link(tmp_path):
  assert files.own_folder(tmp_path / "a").is_dir()
  (tmp_path / "c").symlink_to(tmp_path / "a")
  with pytest.raises(StorageFailure, match=f"is a link to {tmp_path / 'a'}"):
    files.own_folder(tmp_path / "c")
  (tmp_path / "d").touch()
  with pytest.raises(StorageFailure, match="is a regular file"):
    files.own_folder(tmp_path / "d")


def test_hashes_are_of_the_content_alone(tmp_path):
  assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json(
    {"b": 2, "a": 1}
  )
  (tmp_path / "a").write_bytes(b"xxtail")
  (tmp_path / "b").write_bytes(b"tail")
  assert files.sha256_file(tmp_path / "a", 2) == files.sha256_file(
    tmp_path / "b"
  )


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "~nobody-of-this"])
def test_a_home_of_nobody_is_refused_by_name(path):
  with pytest.raises(BadConfig, match="~nobody-of-this.* has no home folder"):
    files.expanded(path)


def test_a_folder_that_is_called_like_a_home_is_no_home_when_read_again(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  path = files.expanded("./~/x")
  assert path == files.expanded(path) == tmp_path / "~" / "x"


@pytest.mark.parametrize("letter", ["m", "ü"])
def test_a_name_as_long_as_any_can_be_is_written(tmp_path, letter):
  name = (letter * 255).encode()[:254].decode() + "."
  files.write_out(tmp_path / name, "x")
  assert folders(tmp_path) == {name}
  (tmp_path / name).unlink()
  for other in (".other", name[:-1]):  # neither is of the folder
    (tmp_path / other).mkdir()
  with files.folder_aside(tmp_path / name) as aside:
    aside.rename(tmp_path / name)
  assert folders(tmp_path) == {name, ".other", name[:-1]}


def test_every_path_of_a_user_is_expanded_by_the_one_function():
  # pathlib's own ends in a RuntimeError where there is no such user.
  package = Path(files.__file__).parent
  using = {
    path.relative_to(package).as_posix()
    for path in package.rglob("*.py")
    if "expanduser" in path.read_text()
  }
  assert using == {"files.py"}


def test_what_a_user_names_is_read_to_a_bound(tmp_path):
  (tmp_path / "a").write_bytes(b"12345")
  (tmp_path / "link").symlink_to(tmp_path / "a")
  assert files.given(tmp_path / "link", 5, "--x") == b"12345"
  for endless in (tmp_path / "a", "/dev/zero"):
    with pytest.raises(BadData, match="^--x=.*more than"):
      files.given(endless, 4, "--x")


def folders(place) -> set[str]:
  return {path.name for path in place.iterdir()}


def test_a_folder_is_filled_aside_and_gone_where_it_was_not_renamed(tmp_path):
  out = tmp_path / "out[1]"
  with files.folder_aside(out) as aside:
    (aside / "x").touch()
    with files.folder_aside(out) as other:  # of another writer, who is held
      assert aside.is_dir() and other != aside
    assert folders(tmp_path) == {aside.name}
    aside.rename(out)
  assert folders(tmp_path) == {out.name} and folders(out) == {"x"}
  with pytest.raises(KeyError), files.folder_aside(tmp_path / "no") as aside:
    raise KeyError
  assert folders(tmp_path) == {out.name}


def test_what_a_killed_writer_left_of_a_folder_is_removed_and_no_more(tmp_path):
  out, kept = tmp_path / "out", tmp_path / "kept"
  kept.mkdir()
  (kept / "x").touch()
  others = (".out.elsewhere.0123.filling", ".output.here.0123.filling", ".out")
  for name in others:
    (tmp_path / name).mkdir()
  code = (
    "import os, sys; from pathlib import Path; from aigc_jax import files\n"
    "with files.folder_aside(Path(sys.argv[1])) as aside:\n"
    "  (aside / 'large').touch()\n"
    "  os.kill(os.getpid(), 9)\n"
  )
  subprocess.run([sys.executable, "-c", code, str(out)])
  (left,) = folders(tmp_path) - {"kept", *others}
  linked = left.replace("filling", "0.filling")
  (tmp_path / linked).symlink_to(kept)
  with files.folder_aside(out) as aside:
    assert folders(tmp_path) == {"kept", *others, linked, aside.name}
  assert folders(kept) == {"x"}
