"""Prompts read by Gemma: the command `contexts`, and streams and clips that read theirs first or look them up."""

import dataclasses
import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stream
from refusal import refusal
from tiny_text import ENCODER, WITHOUT_WORDS, build_tokenizer, folders

from omniforcing_jax.cli import stream as stream_command
from omniforcing_jax.cli.main import main
from omniforcing_jax.io import machine
from omniforcing_jax.pipeline.weights_folder import find_text_encoder, load_pipeline, read_pipeline_config
from omniforcing_jax.sample.plan import encode_plan_on_disk, plan_clip
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.stream.start import open_stream
from omniforcing_jax.text.store import open_store, write_store

PROMPTS = ("a red ball", "a blue ball and Zoë")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(f"{PROMPTS[0]}\n\n  {PROMPTS[1]} \n{PROMPTS[0]}\n", encoding="utf-8")
    return path


def contexts(prompts, weights, *more):
    out = prompts.with_name("contexts.safetensors")
    return ["contexts", "--prompts", prompts, "--weights", weights, "--out", out, *more]


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def store(prompts):
    run(*contexts(prompts, folders() / "text"))
    return prompts.with_name("contexts.safetensors")


def test_each_prompt_is_read_once_and_the_empty_one_with_them(store, prompts):
    found = open_store(store)
    assert found.prompts == (*PROMPTS, "")
    assert found.about == {"encoder": ENCODER.to_dict(), "weights": "text"}
    for each, contexts in zip(found.prompts, find_text_encoder(folders() / "text").encode(found.prompts), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found.read([each]), contexts)


def test_words_are_read_by_the_same_command_also_where_they_are_shared(prompts):
    prompts.write_text("a red ball\n")
    run(*contexts(prompts, tiny_stream.folders() / "teacher"))
    found = open_store(prompts.with_name("contexts.safetensors"))
    assert found.read(["a red ball"]).mask.sum() == 4
    assert found.read([""]).mask.sum() == 1


def test_a_folder_that_says_nothing_of_contexts_may_hold_text_alone(store):
    assert not (folders() / "text" / "transformer").exists()
    assert store.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--prompts": "nowhere.txt"}, ["nowhere.txt: No such file"]),
        ({"--weights": "nowhere"}, ["nowhere: no such weights folder"]),
        ({"--out": "/dev/null/c.safetensors"}, ["cannot write /dev/null/c.safetensors", "not a directory"]),
        ({"--dtype": "float8"}, ["--dtype", "float8"]),
    ],
)
def test_contexts_that_cannot_be_are_refused(capsys, prompts, change, named):
    arguments = contexts(prompts, folders() / "text", "--dtype", "float32")
    for flag, value in change.items():
        arguments[arguments.index(flag) + 1] = value
    line = refusal(capsys, arguments)
    assert all(name in line for name in named), line


def test_files_that_are_no_prompts_are_refused(capsys, prompts):
    prompts.write_text("\n \n")
    assert "at least one" in refusal(capsys, contexts(prompts, folders() / "text"))
    prompts.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(capsys, contexts(prompts, folders() / "text"))


def test_a_word_that_is_unknown_to_words_is_refused_before_any_is_read(capsys, prompts):
    assert "unknown word 'zoë'" in refusal(capsys, contexts(prompts, tiny_stream.folders() / "student"))


def test_a_token_that_gemma_lacks_is_refused_before_any_is_read(capsys, prompts, tmp_path):
    folder = without_tokenizer(tmp_path).parent / "text"
    larger = build_tokenizer()
    larger.add_tokens([f"<unused{i}>" for i in range(100)])
    larger.save(str(folder / "text" / "tokenizer.json"))
    prompts.write_text("a red ball\na <unused99>\n")
    assert "prompt='a <unused99>': has a token" in refusal(capsys, contexts(prompts, folder))


def test_more_memory_than_is_free_is_refused(capsys, prompts, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "free_bytes", lambda: 2**10)
    assert "Gemma 0." in refusal(capsys, contexts(prompts, folders() / "text"))
    arguments = ["sample", "--prompt", "a", "--seconds", 1, "--out", tmp_path / "a.mp4"]
    assert "are free" in refusal(capsys, [*arguments, "--weights", folders() / "teacher"])


def stream(tmp_path, name, *more):
    return [
        *("stream", "--prompt", PROMPTS[0], "--seconds", 2, "--weights", folders() / "student"),
        *("--out", tmp_path / name, *more),
    ]


CHANGE = ("--prompt-at", 1, PROMPTS[1])


def gemmas():
    """Embedding tables in memory."""
    gc.collect()
    return sum(x.shape == (ENCODER.gemma.vocabulary, ENCODER.gemma.width) for x in jax.live_arrays())


@pytest.fixture
def opened(monkeypatch):
    """Streams that commands opened, with their cues, before a block is made; how many Gemmas there were on loading."""
    found, loaded = [], []

    def load(*arguments):
        loaded.append(gemmas())
        return load_pipeline(*arguments)

    monkeypatch.setattr("omniforcing_jax.pipeline.checks.load", load)
    monkeypatch.setattr(stream_command, "run_stream", lambda *given: found.append(given))
    return found, loaded


def test_a_stream_reads_its_prompts_and_lets_gemma_go_before_it_loads(tmp_path, store, opened):
    (streams, loaded), before = opened, gemmas()
    run(*stream(tmp_path, "read.mp4", *CHANGE))
    run(*stream(tmp_path, "looked_up.mp4", *CHANGE, "--contexts", store))
    assert loaded == [before, before]
    wanted = open_store(store)
    for (opened_stream, schedule, _), *_ in streams:
        jax.tree.map(np.testing.assert_array_equal, opened_stream.state.transition.now, wanted.read(PROMPTS[:1]))
        assert [change.prompt for change in schedule] == [PROMPTS[1]]
        opened_stream.set_prompt(schedule[0].prompt, contexts=schedule[0].contexts)
        jax.tree.map(np.testing.assert_array_equal, opened_stream.state.transition.goal, wanted.read(PROMPTS[1:]))


@pytest.mark.long
def test_a_stream_that_reads_its_prompts_is_one_that_looks_them_up(tmp_path, store):
    run(*stream(tmp_path, "read.mp4", *CHANGE))
    run(*stream(tmp_path, "looked_up.mp4", *CHANGE, "--contexts", store))
    run(*stream(tmp_path, "unchanged.mp4", "--contexts", store))
    read, looked_up, unchanged = (
        (tmp_path / f"{name}.mp4").read_bytes() for name in ("read", "looked_up", "unchanged")
    )
    assert read == looked_up
    assert read != unchanged


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--contexts", "{store}", "--prompt-at", 1, "a green ball"], ["no contexts of the prompt 'a green ball'"]),
        (["--contexts", "{store}", "--prompt", "a rad ball"], ["'a rad ball'", "did you mean 'a red ball'"]),
        (["--contexts", "{wide}"], ["(16, 16)", "(24, 24) channels"]),
        (["--weights", "{broken}"], ["tokenizer.json: no such file"]),
    ],
)
def test_a_stream_whose_text_does_not_fit_is_refused(capsys, tmp_path, store, no_work, more, named):
    places = {"store": store}
    if "{wide}" in more:
        rows = [x._replace(video=x.video[..., :16], audio=x.audio[..., :16]) for x in encoded([PROMPTS[0]])]
        places["wide"] = tmp_path / "wide.safetensors"
        write_rows(places["wide"], rows)
    if "{broken}" in more:
        places["broken"] = without_tokenizer(tmp_path)
    arguments = [item.format(**places) if isinstance(item, str) else item for item in more]
    capsys.readouterr()
    line = refusal(capsys, stream(tmp_path, "a.mp4", *arguments))
    assert all(name in line for name in named), line


def encoded(prompts):
    return list(find_text_encoder(folders() / "text").encode(prompts))


def write_rows(path, rows):
    write_store(path, [PROMPTS[0]], iter(rows), {})


def without_tokenizer(tmp_path):
    shutil.copytree(folders(), tmp_path / "broken")
    (tmp_path / "broken" / "text" / "text" / "tokenizer.json").unlink()
    return tmp_path / "broken" / "student"


def test_a_clip_s_negative_prompt_is_the_empty_one_wherever_its_contexts_come_from(store):
    weights = folders() / "teacher"
    asked = ClipRequest(prompts=PROMPTS, seconds=1, steps=2)
    read = encode_plan_on_disk(weights, plan_clip(weights, asked))
    looked_up = plan_clip(weights, dataclasses.replace(asked, contexts=store))
    for prompts in (PROMPTS, ["", ""]):
        found = [plan.negative_contexts.read(prompts) for plan in (read, looked_up)]
        jax.tree.map(np.testing.assert_array_equal, *found)
    assert read.contexts.prompts == (*PROMPTS, "")
    unguided = encode_plan_on_disk(
        weights, plan_clip(weights, dataclasses.replace(asked, prompts=PROMPTS[:1], guidance=1))
    )
    assert unguided.contexts.prompts == PROMPTS[:1]


def test_a_loaded_pipeline_has_no_gemma_and_says_so():
    config = read_pipeline_config(folders() / "student")
    assert config.encoder == ENCODER
    assert config.words is None
    pipeline = load_pipeline(folders() / "student", config)
    with pytest.raises(ValueError, match="the text encoder of 'tiny' is on disk and no part of a loaded pipeline"):
        open_stream(pipeline, PROMPTS[0], 1)
    (contexts,) = encoded(PROMPTS[:1])
    stream = open_stream(pipeline, PROMPTS[0], 1, contexts=contexts)
    np.testing.assert_array_equal(stream.state.transition.now.video, jnp.asarray(contexts.video))
    with pytest.raises(ValueError, match="is on disk"):
        stream.set_prompt(PROMPTS[1])


def test_an_encoder_that_does_not_fit_the_network_is_refused():
    config = read_pipeline_config(folders() / "student")
    model = dataclasses.replace(config.model, caption_channels=32)
    with pytest.raises(ValueError, match=r"^connectors\.video\.width=24"):
        dataclasses.replace(config, model=model)
    with pytest.raises(ValueError, match=r"^words="):
        dataclasses.replace(tiny_stream.student().config, **(WITHOUT_WORDS | {"words": tiny_stream.TINY_STREAM.words}))
