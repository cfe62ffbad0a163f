"""Stores of rows on disk: written in parts by several processes, interrupted, damaged, and read by a trainer."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import import_pairs as import_pairs_command
from omniforcing_jax.layout import FUSED, PREFIX, Layout
from omniforcing_jax.train import data
from omniforcing_jax.train.contexts import Contexts, WithContexts, contexts_header
from omniforcing_jax.train.lmdb_pairs import import_pairs, open_lmdb
from omniforcing_jax.train.pairs import Pairs, pairs_header
from omniforcing_jax.train.store import Header, Row, Store, Writer, fill, partial_path, shard_path, writing

SIGMAS = (1.0, 0.75, 0.0)
VIDEO, AUDIO = (7, 2, 3, 4), (51, 5)  # one frame and two seconds
HEADER = pairs_header(count=7, shards=3, sigmas=SIGMAS, video=VIDEO, audio=AUDIO, teacher="abc")


def row(index, header=HEADER):
    rng = np.random.default_rng(index)
    draws = {name: rng.normal(size=shape).astype(jnp.dtype(dtype)) for name, (dtype, shape) in header.arrays.items()}
    return Row(f"a ball nº {index}", draws)


def write(folder, header=HEADER, **which):
    writer = Writer(folder, header, **which)
    for index in writer.missing():
        writer.put(index, row(index, header))
    return writer


def opened(folder, **other):
    return Pairs(folder, **({"sigmas": SIGMAS, "layout": PREFIX} | other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """A store of its own to damage."""
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_two_writers_of_the_same_shards_do_not_meet(tmp_path):
    with writing(tmp_path, HEADER, process=0, processes=2):
        with pytest.raises(ValueError, match=f"{tmp_path} is in use by process .* choose another folder"):
            fill(tmp_path, HEADER, row, process=0, processes=2)
        assert fill(tmp_path, HEADER, row, process=1, processes=2)  # its shards are others
    assert fill(tmp_path, HEADER, row, process=0, processes=2)
    assert len(Store(tmp_path, "ode_pairs")) == 7
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".lock"]


def test_rows_come_back_as_they_were_put(whole):
    store = Store(whole, "ode_pairs")
    assert store.prompts == [f"a ball nº {i}" for i in range(7)]
    for index in range(7):
        prompt, arrays = store[index]
        assert prompt == store.prompts[index]
        for name, array in row(index).arrays.items():
            np.testing.assert_array_equal(arrays[name], array)
            assert arrays[name].dtype == array.dtype


def test_video_comes_as_tokens_of_rows_and_columns(whole):
    tokens = opened(whole)[4]["video"]
    np.testing.assert_array_equal(tokens[:, (5 * 2 + 1) * 3 + 2], row(4).arrays["video"][:, 5, 1, 2])


def test_processes_write_their_own_shards_and_nothing_else(tmp_path):
    second = write(tmp_path, process=1, processes=2)
    assert [path.name for path in tmp_path.glob("*.array_record")] == ["part-00001-of-00003.array_record"]
    with pytest.raises(ValueError, match="row 0: not of this process"):
        second.put(0, row(0))
    with pytest.raises(ValueError, match=r"shards are missing: part-00000-of-00003 \(0 of 2 rows .*; part-00002"):
        Store(tmp_path, "ode_pairs")
    write(tmp_path, process=0, processes=2)
    assert len(Store(tmp_path, "ode_pairs")) == 7
    assert not list(tmp_path.glob("*.partial"))


def test_a_restart_goes_on_with_the_row_it_was_at(tmp_path):
    writer = Writer(tmp_path, HEADER)
    for index in (0, 1, 2):
        writer.put(index, row(index))
    (partial_path(tmp_path, HEADER, 1) / "3.new").write_bytes(b"cut off")
    assert Writer(tmp_path, HEADER).missing() == [3, 4, 5, 6]
    with pytest.raises(ValueError, match=r"part-00001-of-00003 \(1 of 2 rows written\)"):
        Store(tmp_path, "ode_pairs")
    write(tmp_path)
    np.testing.assert_array_equal(Store(tmp_path, "ode_pairs")[3].arrays["video"], row(3).arrays["video"])


def test_a_shard_whose_rows_are_all_there_is_packed_by_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr("omniforcing_jax.train.store.pack", lambda *_: None)  # killed before it
    write(tmp_path)
    monkeypatch.undo()
    assert Writer(tmp_path, HEADER).missing() == []
    assert len(Store(tmp_path, "ode_pairs")) == 7


def test_another_store_in_the_folder_is_refused(whole):
    other = pairs_header(count=8, shards=3, sigmas=(1.0, 0.5, 0.0), video=VIDEO, audio=AUDIO, teacher="abc")
    with pytest.raises(
        ValueError, match=r"another store: count=7, expected 8; facts.sigmas=\[1.0, 0.75, 0.0\], expected"
    ):
        Writer(whole, other)


def test_a_row_of_another_shape_or_without_numbers_is_refused(tmp_path):
    writer = Writer(tmp_path, HEADER)
    arrays = row(0).arrays
    with pytest.raises(ValueError, match=r"'x': .*audio=\['float32', \[3, 51, 5\]\], expected \['float16'"):
        writer.put(0, Row("x", {**arrays, "audio": arrays["audio"].astype(np.float32)}))
    with pytest.raises(ValueError, match="'x': audio is not finite"):
        writer.put(0, Row("x", {**arrays, "audio": arrays["audio"] * np.float16(np.inf)}))


def test_a_full_disk_is_an_error_before_the_first_row(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    with pytest.raises(ValueError, match=r"rows need .* GB of disk, 1e-07 GB are free"):
        Writer(tmp_path, HEADER)


def test_pairs_of_another_kind_level_layout_width_or_teacher_are_refused(whole):
    with pytest.raises(ValueError, match=r"entries at sigmas \[1.0, 0.75, 0.0\], expected \[1.0, 0.5, 0.0\]"):
        opened(whole, sigmas=(1.0, 0.5, 0.0))
    with pytest.raises(ValueError, match=r"entries at sigmas .* expected \[1.0, 0.0\]"):
        opened(whole, sigmas=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"clips of another layout: .*7"):
        opened(whole, layout=Layout(first_v=1, first_a=1, step_v=9, step_a=75))
    with pytest.raises(ValueError, match=r"other latents: channels=\[4, 5\], expected \[4, 6\]"):
        opened(whole, channels=(4, 6))
    with pytest.raises(ValueError, match="teacher=abc, expected abd"):
        opened(whole, teacher="abd")
    with pytest.raises(ValueError, match="holds ode_pairs, expected text_contexts"):
        Store(whole, "text_contexts")
    assert len(opened(whole, layout=FUSED, channels=(4, 5), teacher="abc")) == 7  # 7 frames are 4 + 3, too


def test_a_missing_header_shard_or_prompt_list_is_named(copy):
    prompts = copy / "part-00000-of-00003.prompts.json"
    kept = prompts.read_text()
    prompts.write_text(json.dumps(["one"]))
    with pytest.raises(ValueError, match=r"prompts.json: 1 prompts, expected 2"):
        opened(copy)
    prompts.write_text(kept)
    shard_path(copy, HEADER, 2).unlink()
    with pytest.raises(ValueError, match=r"shards are missing: part-00002-of-00003 \(0 of 3 rows written\)$"):
        opened(copy)
    (copy / "header.json").write_text("{}")
    with pytest.raises(ValueError, match=r"header.json: not of format"):
        opened(copy)
    (copy / "header.json").unlink()
    with pytest.raises(ValueError, match=r"header.json: No such file"):
        opened(copy)


@pytest.mark.parametrize("length", [0, 2500])
def test_a_shard_that_is_cut_off_is_refused_at_the_start(copy, length):
    path = shard_path(copy, HEADER, 1)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"part-00001-of-00003.array_record has 0 rows, expected 2"):
        opened(copy)


def test_a_damaged_record_is_named_when_it_is_read(copy):
    path = shard_path(copy, HEADER, 1)
    content = bytearray(path.read_bytes())
    content[content.index(row(3).arrays["audio"].tobytes())] ^= 1
    path.write_bytes(content)
    pairs = opened(copy)
    np.testing.assert_array_equal(pairs[2]["audio"], row(2).arrays["audio"])
    with pytest.raises(ValueError, match=r"part-00001-of-00003.array_record: row 3 is damaged"):
        pairs[3]


def test_shards_that_changed_places_are_noticed(copy):
    first, second = (shard_path(copy, HEADER, shard) for shard in (0, 1))  # two rows each
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00000-of-00003.array_record: row 0 is damaged: its prompt is"):
        opened(copy)[0]


def test_headers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="must fall, and end at 0"):
        pairs_header(count=1, shards=1, sigmas=(0.0, 1.0), video=VIDEO, audio=AUDIO, teacher="")
    with pytest.raises(ValueError, match="7 video latent frames go with 51, or 52"):
        pairs_header(count=1, shards=1, sigmas=SIGMAS, video=VIDEO, audio=(50, 5), teacher="")
    with pytest.raises(ValueError, match="shards=3: must lie between 1 and count=2"):
        Header(kind="x", count=2, shards=3, arrays={}, facts={})


def contexts(folder, count=9):
    header = contexts_header(count=count, shards=2, tokens=4, channels=(6, 3), encoder="e1")
    write(folder, header)
    return Contexts(folder, channels=(6, 3), encoder="e1")


def test_contexts_keep_bfloat16_and_are_found_by_prompt(tmp_path):
    found = contexts(tmp_path)
    index = found.row_of("a ball nº 5")
    assert found[index]["context_video"].dtype == jnp.bfloat16
    expected = row(5, contexts_header(count=9, shards=2, tokens=4, channels=(6, 3), encoder="e1"))
    np.testing.assert_array_equal(found[index]["context_video"], expected.arrays["context_video"])
    with pytest.raises(ValueError, match="no context of 'a cube'"):
        found.row_of("a cube")
    with pytest.raises(ValueError, match=r"channels=\[6, 3\], expected \[6, 4\]"):
        Contexts(tmp_path, channels=(6, 4))
    with pytest.raises(ValueError, match="encoder=e1, expected e2"):
        Contexts(tmp_path, channels=(6, 3), encoder="e2")


def test_pairs_come_with_the_context_of_their_prompt_in_shuffled_batches(whole, tmp_path):
    source = WithContexts(opened(whole), contexts(tmp_path))
    batches = data.batches(source, 3, seed=0)
    batch = next(batches)
    assert batch["video"].shape == (3, 3, 42, 4)
    texts = contexts_header(count=9, shards=2, tokens=4, channels=(6, 3), encoder="e1")
    audio = [row(i).arrays["audio"] for i in range(7)]
    for found, context in zip(batch["audio"], batch["context_audio"], strict=True):
        (index,) = (i for i in range(7) if np.array_equal(audio[i], found))
        np.testing.assert_array_equal(context, row(index, texts).arrays["context_audio"])
    state = batches.get_state()
    after = next(batches)["audio"]
    batches.set_state(state)
    np.testing.assert_array_equal(next(batches)["audio"], after)


def test_a_pair_without_a_context_is_an_error_at_the_start(whole, tmp_path):
    with pytest.raises(ValueError, match="no context of 'a ball nº 4'"):
        WithContexts(opened(whole), contexts(tmp_path, count=4))


def reference_lmdb(count=4, sigmas=SIGMAS):
    """What the reference writes, as key and value."""
    frames, rows, columns, channels = VIDEO
    entries = {
        b"video_latents_shape": f"{count} 3 {frames} {channels} {rows} {columns}".encode(),
        b"audio_latents_shape": f"{count} 3 {AUDIO[0]} {AUDIO[1]}".encode(),
        b"prompts_shape": str(count).encode(),
    }
    for i in range(count):
        arrays = row(i).arrays
        entries[f"video_latents_{i}_data".encode()] = arrays["video"].transpose(0, 1, 4, 2, 3).tobytes()
        entries[f"audio_latents_{i}_data".encode()] = arrays["audio"].tobytes()
        entries[f"prompts_{i}_data".encode()] = row(i).prompt.encode()
        if sigmas is not None:
            entries[f"sigmas_{i}_data".encode()] = np.asarray(sigmas, np.float32).tobytes()
    return entries


def assert_imported(folder):
    pairs = opened(folder)
    assert pairs.prompts == [row(i).prompt for i in range(4)]
    for i in range(4):
        np.testing.assert_array_equal(pairs[i]["video"].reshape(3, *VIDEO), row(i).arrays["video"])
        np.testing.assert_array_equal(pairs[i]["audio"], row(i).arrays["audio"])


def test_the_references_pairs_are_imported_and_an_interrupted_import_goes_on(tmp_path):
    entries = reference_lmdb()
    held_back = entries.pop(b"prompts_2_data")
    with pytest.raises(ValueError, match="key 'prompts_2_data' is missing"):
        import_pairs(entries.get, tmp_path, shards=2, teacher="dev")
    assert import_pairs((entries | {b"prompts_2_data": held_back}).get, tmp_path, shards=2, teacher="dev") == 2
    assert_imported(tmp_path)


def test_an_lmdb_without_sigmas_needs_them(tmp_path):
    entries = reference_lmdb(sigmas=None)
    with pytest.raises(ValueError, match="sigmas_0_data is missing; say the noise levels of the 3 entries"):
        import_pairs(entries.get, tmp_path, shards=2, teacher="dev")
    with pytest.raises(ValueError, match="the rows have 3 entries"):
        import_pairs(entries.get, tmp_path, shards=2, teacher="dev", sigmas=(1.0, 0.0))
    import_pairs(entries.get, tmp_path, shards=2, teacher="dev", sigmas=SIGMAS)
    assert_imported(tmp_path)


def test_an_lmdb_that_contradicts_itself_is_refused_by_its_key(tmp_path):
    def fails(match, given=None, **changed):
        entries = reference_lmdb() | {name.encode(): value for name, value in changed.items()}
        with pytest.raises(ValueError, match=match):
            import_pairs(entries.get, tmp_path / match[:6], shards=2, teacher="dev", sigmas=given)

    fails("video_latents_shape='4 3 7': must be 6 numbers", video_latents_shape=b"4 3 7")
    fails(r"audio_latents_shape=\(4, 2, 51, 5\): must begin with", audio_latents_shape=b"4 2 51 5")
    fails("audio_latents_1_data: 4 bytes, expected 1530", audio_latents_1_data=b"0000")
    fails("sigmas_3_data=.*row 0 has", sigmas_3_data=np.array([1, 0.5, 0], np.float32).tobytes())
    fails("the file has", given=(1.0, 0.5, 0.0))


def test_lmdb_is_asked_for_and_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match="lmdb is not installed"), open_lmdb(tmp_path):
        pass


def test_the_command_answers_what_it_cannot_read_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(SystemExit) as caught:
        import_pairs_command.main(import_pairs_command.Arguments(lmdb=tmp_path, out=tmp_path / "store", teacher="dev"))
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: lmdb is not installed")
    assert not (tmp_path / "store").exists()


def test_a_real_lmdb_is_imported(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for key, value in reference_lmdb().items():
            writing.put(key, value)
    with open_lmdb(tmp_path / "lmdb") as get:
        import_pairs(get, tmp_path / "store", shards=2, teacher="dev")
    assert_imported(tmp_path / "store")
    with pytest.raises(ValueError, match="is not an LMDB"), open_lmdb(tmp_path / "nothing"):
        pass
