"""The tokenizer: the same ids as transformers', on the right side, and clear refusals."""

import json

import numpy as np
import pytest
from tiny_text import build_tokenizer, save_tokenizer
from transformers import PreTrainedTokenizerFast

from omniforcing_jax.text.tokenizer import GemmaTokenizer

PROMPTS = ["a red ball", "", "  a blue ball and a red ball\n", "a Zeppelin — über 2 red balls", "ballad <eos> red"]
TOKENS = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("gemma"))


def transformers_ids(folder, prompts, tokens):
    """What ltx-core does: strip, left padding to a fixed length, truncation."""
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>")
    theirs.padding_side = "left"
    found = theirs(
        [prompt.strip() for prompt in prompts],
        padding="max_length",
        max_length=tokens,
        truncation=True,
        return_tensors="np",
    )
    return found["input_ids"], found["attention_mask"]


@pytest.mark.parametrize("tokens", [TOKENS, 5])
def test_ids_and_mask_are_those_of_transformers(folder, tokens):
    ids, mask = GemmaTokenizer(folder, tokens)(PROMPTS)
    theirs_ids, theirs_mask = transformers_ids(folder, PROMPTS, tokens)
    np.testing.assert_array_equal(ids, theirs_ids)
    np.testing.assert_array_equal(mask, theirs_mask)
    assert ids.dtype == mask.dtype == np.int32


def test_a_file_that_adds_no_start_token_as_gemma_4_s_gets_it_added(folder, tmp_path):
    values = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(values | {"post_processor": None}))
    newer, older = GemmaTokenizer(tmp_path, TOKENS), GemmaTokenizer(folder, TOKENS)
    for ours, theirs in zip(newer(PROMPTS), older(PROMPTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert newer.count(" a red ball ") == older.count(" a red ball ") == 4
    typed = [ids[mask != 0].tolist() for ids, mask in zip(*newer(["<bos>a red ball"]), strict=True)]
    assert typed == [[2, *older(["a red ball"])[0][0][-3:].tolist()]]


def test_padding_and_truncation_saved_in_the_file_do_not_count(folder, tmp_path):
    other = build_tokenizer()
    other.enable_padding(length=7)
    other.enable_truncation(3)
    other.save(str(tmp_path / "tokenizer.json"))
    for ours, theirs in zip(
        GemmaTokenizer(tmp_path, TOKENS)(PROMPTS), GemmaTokenizer(folder, TOKENS)(PROMPTS), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_the_empty_prompt_is_the_start_token_at_the_end(folder):
    ids, mask = GemmaTokenizer(folder, 4)([" "])
    assert ids.tolist() == [[0, 0, 0, 2]]
    assert mask.tolist() == [[0, 0, 0, 1]]


def test_counting_sees_what_would_be_cut(folder):
    tokenizer = GemmaTokenizer(folder, 3)
    assert tokenizer.count(" a red ball ") == 4
    assert tokenizer(["a red ball"])[1].sum() == 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file"):
        GemmaTokenizer(tmp_path, 4)


def test_a_folder_with_sentencepiece_s_file_alone_is_told_what_is_missing(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: no such file; tokenizer\.model alone is not read, .*save_pretr"
    ):
        GemmaTokenizer(tmp_path, 4)


def test_a_damaged_file_is_named_in_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version":\n')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer") as caught:
        GemmaTokenizer(tmp_path, 4)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_start_token_is_refused(folder, tmp_path):
    values = json.loads((folder / "tokenizer.json").read_text().replace("<bos>", "<s>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="has no token <bos>"):
        GemmaTokenizer(tmp_path, 4)
