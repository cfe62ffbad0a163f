"""StreamAV-Bench's manifest: lines are added, never lost or doubled, and what the bench would refuse is refused."""

import json

import pytest
from test_judge_command import write

from omniforcing_jax.cli.main import main

TIMES = ["--generation-seconds", "7.5", "--first-chunk-seconds", "3.25"]
EARLIER = {"model_id": "mine", "case_id": "P-0001", "video_path": "a.mp4", "note": "kept – as it is"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=2)


def judge(clip, manifest, case, *flags, model="mine"):
    names = ["--model-id", model, "--case-id", case]
    out = manifest.parent / "judge.json"
    return main(["judge", str(clip), "--json", str(out), "--manifest", str(manifest), *names, *flags])


def lines_of(manifest):
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def test_lines_are_added_in_order_with_paths_from_the_manifest(tmp_path, clip, capsys):
    manifest = tmp_path / "new" / "manifest.jsonl"
    assert judge(clip, manifest, "P-0001", *TIMES) == 0
    assert judge(clip, manifest, "I-0002", *TIMES) == 0
    first, second = lines_of(manifest)
    assert (manifest.parent / first.pop("video_path")).resolve() == clip.resolve()
    assert first == {
        "model_id": "mine",
        "case_id": "P-0001",
        "track": "progressive",
        "runtime": {
            "generated_video_frames": 59,
            "generation_time_seconds": 7.5,
            "time_to_first_chunk_seconds": 3.25,
        },
    }
    assert (second["case_id"], second["track"]) == ("I-0002", "interactive")
    assert "picture lasts 2.0 s, not 180" in capsys.readouterr().err


def test_other_lines_stay_as_they_are_and_times_may_be_left_out(tmp_path, clip):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps(EARLIER) + "\n\n", encoding="utf-8")
    assert judge(clip, manifest, "P-0002") == 0
    assert judge(clip, manifest, "P-0001", *TIMES, model="another") == 0
    assert lines_of(manifest)[0] == EARLIER
    assert ["runtime" in line for line in lines_of(manifest)] == [False, False, True]


@pytest.mark.parametrize(
    ("case", "flags", "named"),
    [
        ("P-0001", [], "has this case of mine already"),
        ("P-0002", TIMES, "cases of mine have not times"),
        ("X-0001", [], "case-id='X-0001': must be like P-0001"),
        ("P-", [], "case-id='P-'"),
        ("P-0002", TIMES[:2], "generation-seconds=7.5: comes with first-chunk-seconds"),
        ("P-0002", ["--generation-seconds", "1", "--first-chunk-seconds", "2"], "first-chunk-seconds=2.0"),
        ("P-0002", ["--generation-seconds", "nan", "--first-chunk-seconds", "0"], "generation-seconds=nan"),
        ("P-0002", ["--model-id", "=1+1"], "model-id='=1+1'"),
        ("P-0002", ["--json", "MANIFEST"], "is an input or another output"),
    ],
)
def test_what_the_bench_would_not_take_is_refused_before_any_work(
    tmp_path, clip, capsys, monkeypatch, case, flags, named
):
    monkeypatch.setattr("omniforcing_jax.cli.judge.read_media", lambda *_: pytest.fail("the file was read"))
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps(EARLIER) + "\n", encoding="utf-8")
    given = [str(manifest) if flag == "MANIFEST" else flag for flag in flags]
    assert judge(clip, manifest, case, *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert lines_of(manifest) == [EARLIER]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--case-id", "P-0001"], "case-id='P-0001': needs --manifest"),
        (["--manifest", "MANIFEST", "--model-id", "mine"], "case-id=None: --manifest needs it"),
    ],
)
def test_flags_of_a_manifest_come_with_it(tmp_path, clip, capsys, flags, named):
    given = [str(tmp_path / "m.jsonl") if flag == "MANIFEST" else flag for flag in flags]
    assert main(["judge", str(clip), "--json", str(tmp_path / "a.json"), *given]) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_manifest_and_a_file_without_a_picture_are_refused(tmp_path, clip, capsys):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"model_id": "mine"\n')
    assert judge(clip, manifest, "P-0002") == 2
    assert f"{manifest}, line 1: not JSON" in capsys.readouterr().err
    manifest.unlink()
    assert judge(write(tmp_path / "sound.mp4", seconds=2, rate=None), manifest, "P-0002") == 2
    assert "it has no picture" in capsys.readouterr().err
    assert not manifest.exists()
