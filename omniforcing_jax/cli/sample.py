"""The command `sample`: from a checked request to a clip in a file."""

import dataclasses
from collections.abc import Callable, Sequence

from omniforcing_jax.cli.options import SampleOptions
from omniforcing_jax.cli.shown_steps import shown_steps
from omniforcing_jax.cli.two_stage import prepare_two_stage
from omniforcing_jax.guidance import GuidanceConfig, StreamGuidance
from omniforcing_jax.io import machine
from omniforcing_jax.io.atomic_write import check_writable, make_parents
from omniforcing_jax.io.inputs import refuse_inputs
from omniforcing_jax.io.startup import Startup
from omniforcing_jax.layout import FRAME_RATE
from omniforcing_jax.pipeline.loading import announce_text, load_shown
from omniforcing_jax.pipeline.shipped import find_weights
from omniforcing_jax.sample.clip import sample_planned
from omniforcing_jax.sample.keyframes import parse_keyframe, parse_reference
from omniforcing_jax.sample.plan import encode_plan_on_disk, plan_clip
from omniforcing_jax.sample.request import ClipRequest
from omniforcing_jax.schedule import DISTILLED
from omniforcing_jax.stream.chunk import Chunk
from omniforcing_jax.stream.mp4 import check_kind, write_mp4
from omniforcing_jax.strict_json import require


def parse_guidance(items: Sequence[str]) -> GuidanceConfig:
    """Read guidance as the command line has it.

    Items are `name=value` for both streams or `video.name=value`, `audio.name=value` for one, with the names of
    `StreamGuidance`; `layers=3,4` chooses the layers of STG. A bare number is `cfg`; a second one is the audio's.

    Raises:
        ValueError: Naming the item that cannot be read.
    """
    strengths: dict[str, dict[str, float]] = {"video": {}, "audio": {}}
    layers: tuple[int, ...] = ()
    bare = [item for item in items if "=" not in item]
    require(len(bare) <= 2, "guidance", bare, "at most two bare numbers: cfg of video and of audio")
    named = [f"{stream}.cfg={value}" for stream, value in zip(("video", "audio"), bare * 2, strict=False)]
    for item in [*named, *(item for item in items if "=" in item)]:
        name, _, value = item.partition("=")
        try:
            if name == "layers":
                layers = tuple(int(layer) for layer in value.split(","))
                continue
            stream, _, field = name.rpartition(".")
            for each in (stream,) if stream else ("video", "audio"):
                strengths[each][field] = float(value)
        except (KeyError, ValueError):
            raise ValueError(f"guidance: cannot read {item!r}; expected for example 3, cfg=3 or audio.stg=1") from None
    try:
        return GuidanceConfig(
            video=StreamGuidance(**strengths["video"]), audio=StreamGuidance(**strengths["audio"]), stg_layers=layers
        )
    except TypeError:
        known = ", ".join(field.name for field in dataclasses.fields(StreamGuidance))
        wrong = sorted({name for stream in strengths.values() for name in stream} - set(known.split(", ")))
        raise ValueError(f"guidance: unknown {', '.join(wrong)}; known are {known} and layers") from None


def build_request(command: SampleOptions) -> ClipRequest:
    """Build the request that the flags ask for.

    Raises:
        ValueError: In one line that names the flag, if one cannot be read.
    """
    return ClipRequest(
        prompts=(command.prompt,),
        seconds=command.seconds,
        steps=command.steps,
        guidance=parse_guidance(command.guidance),
        seed=command.seed,
        height=command.height,
        width=command.width,
        dtype=command.dtype,
        contexts=command.contexts,
        negative_prompt=command.negative_prompt,
        negative_contexts=command.negative_contexts,
        renewal=command.renewal,
        ancestral=command.ancestral,
        camera=command.camera,
        sigmas=DISTILLED if command.sigmas == "distilled" else None,
        keyframes=[parse_keyframe(text, command.fit, command.compress) for text in command.keyframe],
        references=[parse_reference(text, command.fit) for text in command.reference],
        loras=tuple((str(file), strength) for file, strength in command.lora),
    )


def prepare_sample(command: SampleOptions, startup: Startup) -> Callable[[], None]:
    """Check the request and load the weights.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    names = ("contexts", "negative_contexts", "second_weights")
    read = {name.replace("_", "-"): getattr(command, name) for name in names}
    request = build_request(command)
    loras = {f"lora {file}": file for file, _ in command.lora}
    given = {f"given {each.picture}": each.picture for each in (*request.keyframes, *request.references)}
    files = {name: picture for name, picture in given.items() if isinstance(picture, str)}
    refuse_inputs("out", command.out, {**read, **loras, **files, "weights": find_weights(command.weights)})
    check_kind(command.out)
    check_writable(command.out)
    has_given = bool(command.keyframe or command.reference)
    require(command.fit is None or has_given, "fit", command.fit, "needs --keyframe or --reference")
    require(command.compress is None or bool(command.keyframe), "compress", command.compress, "needs --keyframe")
    is_used = command.second_weights is None or command.two_stage
    require(is_used, "second-weights", command.second_weights, "needs --two-stage")
    prepare = prepare_two_stage if command.two_stage else prepare_clip
    make = prepare(command, request, startup)

    def work() -> None:
        make_parents(command.out)
        clip = make()
        write_mp4(command.out, clip.video, clip.audio, frame_rate=FRAME_RATE, sample_rate=clip.sample_rate)
        print(f"{command.out}: {len(clip.video)} frames, {machine.process_seconds():.2f} s after start")

    return work


def prepare_clip(command: SampleOptions, request: ClipRequest, startup: Startup) -> Callable[[], Chunk]:
    """Check a request for a clip in one stage and load the weights. What comes back makes the clip.

    Raises:
        ValueError: In one line, whatever is wrong with the request.
    """
    plan = plan_clip(command.weights, request)
    announce_text(startup, command.weights, request.contexts, request.dtype)
    plan = encode_plan_on_disk(command.weights, plan)
    shapes = plan.grid, plan.frames, plan.static.guidance.passes
    pipeline = load_shown(command.weights, plan.config, request.dtype, startup, *shapes)

    def make() -> Chunk:
        with shown_steps(len(plan.sigmas) - 1, startup) as on_step:
            (clip,) = sample_planned(pipeline, plan, on_step)
        return clip

    return make
