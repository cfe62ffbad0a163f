"""StreamAV-Bench's manifest of generated clips: JSON lines, one per case, to which `judge` adds the file it judges.

A line has `model_id`, `case_id`, `track`, `video_path` relative to the manifest and, where it was measured, `runtime`:
`generated_video_frames`, `generation_time_seconds` and `time_to_first_chunk_seconds`. The bench takes frames per second
and the time to the first chunk from these; a model has them for all of its cases or for none.

Source: StreamAVBench-Code@550c897:README.md, StreamAVBench-Code@550c897:src/streamav_eval/manifest.py and
StreamAVBench-Code@550c897:src/streamav_eval/efficiency.py.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing_jax.io.atomic_write import replacing
from omniforcing_jax.io.media_file import find_picture, open_media
from omniforcing_jax.io.text_file import read_lines
from omniforcing_jax.strict_json import loads_object, require

TRACKS = {"P": "progressive", "I": "interactive"}  # by the first letter of a case
LENGTH_S, TOLERANCE_S = 180.0, 0.5  # of every case; both streams of a longer or shorter file count as a failure
FORMULA = "=+-@"  # how cells begin that spreadsheets compute


@dataclass(frozen=True, kw_only=True)
class Case:
    """A generated clip of a scenario.

    Attributes:
        model_id: Name of the model.
        case_id: Scenario: P-0001 of the progressive track, I-0001 of the interactive one.
        video: The media file.
        generation_s: Seconds from the request to the last frame; None was not measured.
        first_chunk_s: Seconds from the request to the first chunk; None was not measured.

    Raises:
        ValueError: Names flag, value and rule.
    """

    model_id: str
    case_id: str
    video: Path
    generation_s: float | None = None
    first_chunk_s: float | None = None

    def __post_init__(self) -> None:
        name = self.model_id
        plain = bool(name.strip()) and name.isprintable() and name[0] not in FORMULA
        require(plain, "model-id", name, f"must be a printable name that does not begin with one of {FORMULA}")
        letter, _, number = self.case_id.partition("-")
        is_case = letter in TRACKS and bool(number) and self.case_id.isprintable() and " " not in self.case_id
        require(is_case, "case-id", self.case_id, "must be like P-0001 (progressive) or I-0001 (interactive)")
        whole, first = self.generation_s, self.first_chunk_s
        require((whole is None) == (first is None), "generation-seconds", whole, "comes with first-chunk-seconds")
        if whole is not None and first is not None:
            require(0 < whole < math.inf, "generation-seconds", whole, "must be positive")
            require(0 <= first <= whole, "first-chunk-seconds", first, "must be from 0 to generation-seconds")

    def line(self, manifest: Path, frames: int) -> dict[str, Any]:
        """Return the line of this case in a manifest, of a clip of so many frames."""
        folder = os.path.realpath(manifest.parent)
        record: dict[str, Any] = {
            "model_id": self.model_id,
            "case_id": self.case_id,
            "track": TRACKS[self.case_id[0]],
            "video_path": Path(os.path.relpath(os.path.realpath(self.video), folder)).as_posix(),
        }
        if self.generation_s is not None:
            record["runtime"] = {
                "generated_video_frames": frames,
                "generation_time_seconds": self.generation_s,
                "time_to_first_chunk_seconds": self.first_chunk_s,
            }
        return record


def read_manifest(manifest: Path) -> list[dict[str, Any]]:
    """Return the lines of a manifest; none if there is no such file.

    Raises:
        ValueError: It cannot be read, or a line is no JSON object; names file and line.
    """
    if not manifest.exists():
        return []
    if not manifest.is_file():
        raise ValueError(f"{manifest}: is no file")
    return [loads_object(text, f"{manifest}, line {number}") for number, text in enumerate(read_lines(manifest), 1)]


def check_case(manifest: Path, case: Case) -> None:
    """Refuse a case that a manifest cannot take.

    Raises:
        ValueError: As `read_manifest`; the case is there already; only some cases of the model have times; or the file
            has no picture.
    """
    with open_media(case.video) as file:
        if find_picture(file, case.video) is None:
            raise ValueError(f"cannot add {case.video} to {manifest}: it has no picture")
    for line in read_manifest(manifest):
        if line.get("model_id") == case.model_id:
            known, timed = line.get("case_id"), "runtime" in line
            require(
                known != case.case_id, "case-id", case.case_id, f"{manifest} has this case of {case.model_id} already"
            )
            have = "have" if timed else "have not"
            rule = f"{manifest} says that cases of {case.model_id} {have} times, and all must be alike"
            require(timed == (case.generation_s is not None), "generation-seconds", case.generation_s, rule)


def add_case(manifest: Path, case: Case, frames: int) -> None:
    """Add the line of a case to the end of a manifest, which is replaced in one step.

    Raises:
        ValueError: As `check_case`.
    """
    check_case(manifest, case)
    lines = [*read_manifest(manifest), case.line(manifest, frames)]
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    with replacing(manifest) as new:
        new.write_text(text, encoding="utf-8")


def doubts(figures: dict[str, Any]) -> list[str]:
    """Say why the bench would count a file as a failure, by the lengths that `judge` measured."""
    lengths = {"picture": figures["media"]["picture_s"], "sound": figures["media"]["sound_s"]}
    return [
        f"has no {name}" if seconds is None else f"{name} lasts {seconds:.1f} s, not {LENGTH_S:.0f}"
        for name, seconds in lengths.items()
        if seconds is None or abs(seconds - LENGTH_S) > TOLERANCE_S
    ]
