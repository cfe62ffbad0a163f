"""The flags of each command: one dataclass per command.

Fields are flags and the docstrings under them their help; flags that several commands share are in base classes, which
are the groups of the help. Nothing is computed here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from omniforcing_jax.pipeline.cards import CARDS
from omniforcing_jax.pipeline.shipped import STUDENT, TEACHER

DType = Literal["float32", "bfloat16"]
EightBits = Annotated[Literal["int8", "float8"] | None, tyro.conf.arg(metavar="int8|float8")]
Text = Annotated[str, tyro.conf.arg(metavar="TEXT")]
Seconds = Annotated[float, tyro.conf.arg(metavar="SECONDS")]
Pixels = Annotated[int | None, tyro.conf.arg(metavar="PIXELS")]
Blocks = Annotated[int | None, tyro.conf.arg(metavar="BLOCKS")]
Steps = Annotated[int | None, tyro.conf.arg(metavar="STEPS")]
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]
SomeFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
SomeFolder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
LoraFile = Annotated[tyro.conf.UseAppendAction[tuple[tuple[Path, float], ...]], tyro.conf.arg(metavar="FILE STRENGTH")]
Fit = Annotated[Literal["crop", "pad", "stretch"] | None, tyro.conf.arg(metavar="crop|pad|stretch")]
Camera = Annotated[str | None, tyro.conf.arg(metavar="KEYS-FRAMES,...")]
Weights = Annotated[str, tyro.conf.arg(metavar="FOLDER|NAME")]


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """Size and computation."""

    height: Pixels = None
    """Height of the picture in pixels; by default the height that the weights were trained at."""
    width: Pixels = None
    """Width of the picture in pixels; by default the width that the weights were trained at."""
    dtype: DType = "float32"
    """Type to compute in. Sound is always made in float32."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """How a student runs."""

    window: Blocks = None
    """Blocks that a block can see, itself included. 0 fills the trained length; by default the weights' own number."""
    steps: Steps = None
    """Denoising steps per block, at most the trained number, which is the default."""
    weights_dtype: EightBits = None
    """Type of the network's large matrices: eight bits halve their memory. By default they stay as they are."""
    cache_dtype: EightBits = None
    """Type of the video keys and values of past blocks: eight bits halve their memory. By default that of --dtype."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Changes of the weights."""

    lora: LoraFile = ()
    """LoRA that changes the network while it runs, and its strength. May be given several times."""


@dataclass(frozen=True, kw_only=True)
class SteeringOptions:
    """Changing prompt, LoRAs and camera on the way."""

    prompt_at: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[float, str], ...]], tyro.conf.arg(metavar="SECONDS TEXT")
    ] = ()
    """Show another prompt from this second on. May be given several times, in order of time."""
    recompute: Blocks = None
    """Past blocks that are computed again under a new prompt, the newest first; by default all that a block sees."""
    fade: Annotated[int, tyro.conf.arg(metavar="BLOCKS")] = 0
    """Blocks over which one prompt fades into the next."""
    lora_at: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[float, Path, float], ...]],
        tyro.conf.arg(metavar="SECONDS FILE STRENGTH"),
    ] = ()
    """Give a LoRA another strength from this second on; 0 turns it off. May be given several times."""
    camera: Camera = None
    """Move the camera, of weights with camera attention: w-24,wd-48,none-24 holds keys of w a s d (move) and i k j l
    (turn) for so many frames. After the last one it stands. With --resume they replace what is left."""


@dataclass(frozen=True, kw_only=True)
class ConditioningOptions:
    """Picture or sound that is given, not made."""

    sound: SomeFile = None
    """Make the picture to the sound of this file, which is at least as long as the stream. --out gets this sound."""
    picture: SomeFile = None
    """Make the sound to the picture of this file, which is at least as long as the stream."""
    from_image: SomeFile = None
    """Begin with this image."""
    continue_: Annotated[Path | None, tyro.conf.arg(name="continue", metavar="FILE")] = None
    """Go on from this clip of 1 + 24 n frames. --seconds counts it, and --out begins with it."""
    drop_past: bool = False
    """Leave the clip of --continue out of --out."""
    fit: Fit = None
    """How a picture of another size than the stream's is brought to it. By default it is refused."""
    compress: Annotated[int | None, tyro.conf.arg(metavar="CRF")] = None
    """Compress the image of --from-image by H.264 first, as the clips of training were (EchoWM's at 33)."""
    resynthesise: bool = False
    """Write the sound of --sound as the network's decoder makes it again, not the file's own."""


@dataclass(frozen=True, kw_only=True)
class SavingOptions:
    """Stopping and going on."""

    save_state: SomeFolder = None
    """Save the stream to this folder when it ends or at Ctrl-C, so that it can go on later."""
    resume: SomeFolder = None
    """Go on with the stream that was saved to this folder, bit for bit as if it had never stopped."""


@dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """Where the network lies."""

    mesh: Annotated[str, tyro.conf.arg(metavar="REPLICA,FSDP,TENSOR")] = "1,1,1"
    """How to cut the network over all devices: 1,1,4 cuts every layer for four devices."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions(
    SteeringOptions, LoraOptions, ConditioningOptions, SavingOptions, NetworkOptions, SizeOptions, MeshOptions
):
    """Stream picture and sound from a causal student into an MP4 file that plays while it grows.

    Examples:
      omniforcing stream --prompt "a red ball and a blue ball" --seconds 12 --out out/balls.mp4
      omniforcing stream --prompt "a red ball" --prompt-at 6 "a green ball" --recompute 0 --seconds 12 --out out/two.mp4
      omniforcing stream --prompt "a red ball" --seconds 5 --save-state out/state --out out/first.mp4
      omniforcing stream --resume out/state --seconds 5 --out out/second.mp4
    """

    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """What to show. Required, except with --resume, whose state has the prompt."""
    seconds: Seconds
    """Length in whole seconds; the clip has one frame more. With --resume it is how much longer to go on."""
    out: File
    """MP4 or MOV file to write. After --resume its clock begins at the time where the state was saved."""
    seed: int = 0
    """Random seed."""
    weights: Weights = STUDENT
    """Weights folder of a causal student, or the name of shipped weights."""
    contexts: SomeFile = None
    """Safetensors file of text contexts, used instead of the weights' own text encoder. The command `contexts` writes
    one, in which the prompt is looked up; a file may also hold the tensors video, audio and mask of this prompt."""
    lookahead: Annotated[int | None, tyro.conf.arg(metavar="LATENTS")] = None
    """Latent frames, a third of a second each, by which the picture is held back for a decoder that is not causal or
    for --upscale; by default 3 for either."""
    upscale: bool = False
    """Upsample each block's latents before they are decoded, for a picture of twice the sides. The weights folder needs
    a spatial_upsampler. --height and --width stay those of the network."""


@dataclass(frozen=True, kw_only=True)
class TwoStageOptions:
    """Two stages: a small clip, upsampled and refined."""

    two_stage: bool = False
    """Make the clip small first, upsample its latents, and refine them in three steps without guidance, as LTX-2's own
    pipelines do. The weights folder needs a spatial_upsampler. --height and --width are the final ones; by default they
    are the trained ones times the upsampler's scale. Keyframes, and LoRAs without --reference, are for both stages; all
    other flags are the first stage's."""
    second_weights: SomeFolder = None
    """Weights folder of the network that refines, such as one with LTX-2's distilled LoRA; by default that of
    --weights, which is then a distilled one. With this flag the clip has the sound of the first stage."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(TwoStageOptions, LoraOptions, SizeOptions):
    """Sample a whole clip from a bidirectional teacher.

    Examples:
      omniforcing sample --prompt "two balls: red and blue" --seconds 5 --steps 60 --renewal 1 --out out/clip.mp4
      omniforcing sample --prompt "a red ball" --seconds 5 --weights weights/ltx2 --two-stage --out out/large.mp4
    """

    prompt: Text
    """What to show."""
    seconds: Seconds
    """Length in whole seconds; the clip has one frame more."""
    out: File
    """MP4 or MOV file to write."""
    steps: Annotated[int, tyro.conf.arg(metavar="STEPS")] = 40
    """Denoising steps."""
    sigmas: Literal["schedule", "distilled"] = "schedule"
    """Noise levels: those of the schedule with --steps steps, or the eight of LTX-2's distilled weights."""
    renewal: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0
    """Share of fresh noise in each step, from 0 (Euler's method) to 1 (a diffusion process run backwards)."""
    ancestral: Annotated[float, tyro.conf.arg(metavar="ETA")] = 0.0
    """Fresh noise of ancestral Euler steps, from 0 (none) to 1; LTX-2.5's distilled weights take 1."""
    camera: Camera = None
    """Move the camera, of weights with camera attention, as the command stream does."""
    keyframe: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE@SECOND[:STRENGTH]")
    ] = ()
    """Picture or clip that is given from this second of the clip on. May be given several times."""
    reference: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE[:STRENGTH]")] = ()
    """Clip beside the one that is made, which an IC-LoRA (--lora) reads. May be given several times."""
    fit: Fit = None
    """How a keyframe or a reference of another size is brought to its own. By default it is refused."""
    compress: Annotated[int | None, tyro.conf.arg(metavar="CRF")] = None
    """Compress keyframes of one frame by H.264 first, as the clips of training were (LTX-2's at 33)."""
    negative_prompt: Text = ""
    """What guidance pushes away from; by default the empty prompt."""
    guidance: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STRENGTH [...]")] = ("3",)
    """Strength of guidance: one number for both streams, two for video and audio, or names with values, such as cfg=3
    audio.cfg=7 stg=1 layers=4 rescale=0.7."""
    seed: int = 0
    """Random seed."""
    weights: Weights = TEACHER
    """Weights folder of a bidirectional teacher, or the name of shipped weights."""
    contexts: SomeFile = None
    """Safetensors file of text contexts, used instead of the weights' own text encoder."""
    negative_contexts: SomeFile = None
    """The same for the negative prompt; by default that of --contexts, if it has one."""


@dataclass(frozen=True, kw_only=True)
class ContextsOptions:
    """Compute the text contexts of many prompts once, so that streams need no text encoder in memory.

    Examples:
      omniforcing contexts --prompts prompts.txt --weights weights/ltx2 --dtype bfloat16 --out out/prompts.safetensors
    """

    prompts: File
    """Text file with one prompt per line. Empty lines are skipped. The empty prompt, for guidance, is always added."""
    weights: Weights
    """Weights folder with a text encoder: words, or Gemma (text) with connectors. It needs no other component."""
    out: File
    """Safetensors file to write, for the flag --contexts of other commands."""
    dtype: DType = "float32"
    """Type to compute in and to write."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(NetworkOptions, SizeOptions):
    """Measure the speed and memory of a stream, what streaming costs its decoders, or what a server holds.

    The figures are explained at the head of omniforcing_jax/cli/bench_stream.py, bench_decode.py and bench_serve.py.

    Examples:
      omniforcing bench stream --blocks 600 --json out/bench.json
      omniforcing bench decode --json out/decode.json
      omniforcing bench serve --json out/serve.json
    """

    what: Annotated[Literal["stream", "decode", "serve"], tyro.conf.Positional]
    """What to measure."""
    json: File
    """JSON file for the figures."""
    blocks: Blocks = None
    """Length of the stream, about one second per block. Required by `bench stream`; 12 for `bench decode`, 14 for
    each part of `bench serve`."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|NAME")] = None
    """Weights folder of a causal student, or the name of shipped weights; by default chime."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Sizes of random weights, not a weights folder: ltx2-19b, ltx2-22b, ltx2.5-22b, ltx2-22b-echowm, chime or tiny."""
    random_weights: bool = False
    """Draw the weights of --preset at random, on the device."""
    mux: bool = True
    """Leave out the encoding of H.264 and AAC into a temporary file."""
    seed: int = 0
    """Random seed of the noise and of random weights."""


@dataclass(frozen=True, kw_only=True)
class SharingOptions:
    """How streams share the device."""

    ahead: Seconds = 3.0
    """How far a stream is made ahead of its viewers. A new prompt is seen after about as long."""
    max_sessions: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """Streams that are held at once, waiting ones included."""
    seats: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Streams that are made at once; by default as many as the device makes in real time, which is measured."""
    per_client: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Streams that one client may have."""
    idle: Seconds = 600.0
    """Put a stream away that nobody has watched for so long. With --state it is saved."""


@dataclass(frozen=True, kw_only=True)
class ReachOptions:
    """Who can reach the server."""

    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen at. Any other than this machine's own needs --token."""
    port: Annotated[int, tyro.conf.arg(metavar="PORT")] = 8188
    """Port to listen at; 0 takes any that is free."""
    token: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """What clients must know; by default the variable OMNIFORCING_TOKEN, if it is set."""
    allow_host: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [...]")] = ()
    """Further names that browsers reach this server by, such as that of a proxy."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(SharingOptions, ReachOptions, LoraOptions, MeshOptions):
    """Serve live streams to browsers and players: a page, an API, MP4 and HLS.

    Examples:
      omniforcing serve
      omniforcing serve --weights weights/ltx2-student --host 0.0.0.0 --token SECRET --state state
      omniforcing serve --weights weights/ltx2-student --dtype bfloat16 --mesh 1,1,4
      omniforcing serve --mock
    """

    weights: Weights = STUDENT
    """Weights folder of a causal student, or the name of shipped weights."""
    dtype: DType = "float32"
    """Type to compute in."""
    cache_dtype: EightBits = None
    """Type of the video keys and values of past blocks, of every stream; by default that of --dtype."""
    state: SomeFolder = None
    """Folder for saved streams. What it holds is offered again after a restart."""
    state_gb: Annotated[float, tyro.conf.arg(metavar="GIGABYTES")] = 40.0
    """Size of --state. The oldest saved streams make room for new ones; those that run are never removed."""
    save_every: Annotated[int, tyro.conf.arg(metavar="BLOCKS")] = 30
    """Blocks between two saves to --state; 0 saves only when the server is told to stop."""
    mock: bool = False
    """Draw the small world instead of making it with weights: starts at once, for work on the page."""
    log_json: bool = False
    """Write log lines as JSON."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(NetworkOptions, SizeOptions):
    """Print the memory that a stream needs on a card, and the speed to expect. No card is needed; nothing is loaded.

    Memory is counted from shapes. The speed follows from the card's peaks, and from the shares of them that one H200
    reached. The exit code is 1 if the stream does not fit.

    Examples:
      omniforcing plan --preset ltx2-19b --device h100
      omniforcing plan --preset ltx2-19b --device all
      omniforcing plan --weights weights/student --device rtx4090 --weights-dtype float8 --window 2
    """

    device: Annotated[Literal[("all", *CARDS)], tyro.conf.arg(metavar="|".join(("all", *CARDS)))]
    """The card, or all of them in one table of total memory and expected speed."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|NAME")] = None
    """Weights folder of a causal student, or the name of shipped weights; by default chime."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Sizes instead of a weights folder: ltx2-19b, ltx2-22b, ltx2.5-22b, ltx2-22b-echowm, chime or tiny."""
    text_tokens: Annotated[int, tyro.conf.arg(metavar="TOKENS")] = 1024
    """Tokens of a prompt, for weights whose text encoder is Gemma."""
    dtype: DType = "bfloat16"
    """Type to compute in. Sound is always made in float32."""
    json: SomeFile = None
    """JSON file for the figures."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Judge picture and sound of any media file: synchrony, visible block borders, drift.

    The figures are explained at the head of omniforcing_jax/judge/report.py.

    Examples:
      omniforcing judge out/balls.mp4 --json out/judge.json
      omniforcing judge out/balls.mp4 --reference out/clip.mp4 --json out/judge.json --plot out/judge.png
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Media file of any size, rates and number of channels."""
    json: File
    """JSON file for the figures."""
    reference: SomeFile = None
    """Second media file, which is judged beside the first."""
    plot: SomeFile = None
    """PNG, PDF or SVG file for the curves behind the figures."""
    block_seconds: Seconds = 1.0
    """Length of the blocks whose borders are looked for."""
    first_block_frames: Annotated[int, tyro.conf.arg(metavar="FRAMES")] = 1
    """Frames of the first block."""
    manifest: SomeFile = None
    """StreamAV-Bench's manifest, a file of JSON lines, to which a line for this file is added."""
    model_id: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Name of the model in the manifest."""
    case_id: Annotated[str | None, tyro.conf.arg(metavar="CASE")] = None
    """Scenario in the manifest, such as P-0001 or I-0001."""
    generation_seconds: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Time that the whole clip took, for the manifest."""
    first_chunk_seconds: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Time until its first chunk, for the manifest."""
