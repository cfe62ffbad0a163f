"""The vocoders as a component: names and configs of LTX-2's single file and of diffusers, 2.0 and 2.3.

A section with a `bwe` part (diffusers: another class) is 2.3's pair of generators. Filters and bases of 2.3 lie in the
file and are kept as they are; the inverse of the Fourier basis is used by nobody and goes through.
Source: specs/ltx2.md 7.3, 7.4, 9.1, 9.2, A.4.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from converters.component import DIFFUSERS, LTX2, Component, Header, Naming, Section
from converters.rules import Axes, Rule
from omniforcing_jax.codecs.bandwidth import ExtensionConfig
from omniforcing_jax.codecs.generator import Activation, Final, GeneratorConfig
from omniforcing_jax.codecs.vocoder import Vocoder, VocoderConfig
from omniforcing_jax.strict_json import require

PREFIX = "vocoder."
KERNEL: Axes = (2, 1, 0)
TRANSPOSED_KERNEL: Axes = (2, 0, 1)
BASES = ("mel_stft.mel_basis", "mel_stft.stft_fn.forward_basis")
UNUSED = "mel_stft.stft_fn.inverse_basis"
ENDS = 128  # channels that every published vocoder reads: two times 64 mel bins


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a format calls the parts of a generator."""

    first: str
    last: str
    up: str
    blocks: str
    last_act: str
    down_filter: str


ORIGINAL = Words(
    first="conv_pre",
    last="conv_post",
    up="ups",
    blocks="resblocks",
    last_act="act_post",
    down_filter="downsample.lowpass.filter",
)
OTHER = Words(
    first="conv_in",
    last="conv_out",
    up="upsamplers",
    blocks="resnets",
    last_act="act_out",
    down_filter="downsample.filter",
)


def make_rules(config: VocoderConfig, words: Words) -> tuple[Rule, ...]:
    """Pair our names with another format's, without its prefix."""
    if config.extension is None:
        return tuple(_generator(config, words, "", ""))
    return (
        *_generator(config, words, "", "vocoder."),
        *_generator(config.extension.generator, words, "extension/generator/", "bwe_generator."),
        Rule("constants/extension/mel/mel_basis", BASES[0]),
        Rule("constants/extension/mel/forward_basis", BASES[1], KERNEL),
    )


def _generator(config: GeneratorConfig, words: Words, ours: str, theirs: str) -> Iterator[Rule]:
    yield from _conv(f"{ours}conv_in/conv", f"{theirs}{words.first}")
    yield from _conv(f"{ours}conv_out/conv", f"{theirs}{words.last}")
    yield from _act(words, f"{ours}act_out", f"{theirs}{words.last_act}")
    count = len(config.resblock_kernels)
    for stage in range(len(config.rates)):
        yield from _conv(f"{ours}up_{stage}", f"{theirs}{words.up}.{stage}", TRANSPOSED_KERNEL)
        for j, dilations in enumerate(config.resblock_dilations):
            own, other = f"{ours}stage_{stage}_block_{j}", f"{theirs}{words.blocks}.{stage * count + j}"
            for i in range(len(dilations)):
                for side in (1, 2):
                    yield from _conv(f"{own}/conv{side}_{i}/conv", f"{other}.convs{side}.{i}")
                    yield from _act(words, f"{own}/act{side}_{i}", f"{other}.acts{side}.{i}")


def _conv(ours: str, theirs: str, axes: Axes = KERNEL) -> Iterator[Rule]:
    yield Rule(f"params/{ours}/kernel", f"{theirs}.weight", axes)
    yield Rule(f"params/{ours}/bias", f"{theirs}.bias")


def _act(words: Words, ours: str, theirs: str) -> Iterator[Rule]:
    for name in ("alpha", "beta"):
        yield Rule(f"params/{ours}/{name}", f"{theirs}.act.{name}")
    yield Rule(f"constants/{ours}/upsample", f"{theirs}.upsample.filter", KERNEL)
    yield Rule(f"constants/{ours}/downsample", f"{theirs}.{words.down_filter}", KERNEL)


def original_rules(config: VocoderConfig) -> tuple[Rule, ...]:
    """List the names of LTX-2's single file."""
    return tuple(Rule(rule.ours, PREFIX + rule.theirs, rule.axes) for rule in make_rules(config, ORIGINAL))


def diffusers_rules(config: VocoderConfig) -> tuple[Rule, ...]:
    """List diffusers' names."""
    return make_rules(config, OTHER)


def read_header(header: Header) -> VocoderConfig:
    """Read the `vocoder` section of an LTX-2 header.

    Raises:
        ValueError: A value is missing, of the wrong kind, or not what this network is built for; names it.
    """
    values = header.get("vocoder")
    if not isinstance(values, Mapping):
        raise ValueError(f"header config={sorted(header)}: must have a vocoder section")
    where = "header config, vocoder"
    if "bwe" not in values:
        section = Section(values, where)
        section.expect({"resblock": "1"})
        config = _read_generator(section, Activation.LEAKY_RELU)
        rate = section.take("output_sampling_rate", int, 24000)
        section.close()
        return _with_rate(config, rate, None)
    pair = Section(values, where)
    first, second = (Section(pair.take(name, dict), f"{where}.{name}") for name in ("vocoder", "bwe"))
    pair.close()
    for section in (first, second):
        for key, wanted in (("resblock", "AMP1"), ("activation", "snakebeta")):
            require((found := section.take(key, str)) == wanted, f"{section.where}.{key}", found, f"must be {wanted}")
    rates = [second.take(f"{side}_sampling_rate", int) for side in ("input", "output")]
    second.expect({"apply_final_activation": False})
    extension = _read_extension(second, _read_generator(second, Activation.SNAKE), ("n_fft", "win_size"), rates)
    config = _with_rate(_read_generator(first, Activation.SNAKE), rates[0], extension)
    first.ignore("output_sampling_rate")
    first.close()
    second.close()
    return config


def _read_generator(section: Section, activation: Activation) -> dict[str, Any]:
    """Read the fields of a generator in an LTX-2 header."""
    section.expect({"stereo": True})
    rates = section.take("upsample_rates", list, [6, 5, 2, 2, 2])
    tanh = section.take("use_tanh_at_final", bool, True)
    return {
        "channels": _halvings(section.take("upsample_initial_channel", int, 1024), len(rates)),
        "rates": tuple(rates),
        "kernels": tuple(section.take("upsample_kernel_sizes", list, [16, 15, 8, 4, 4])),
        "resblock_kernels": tuple(section.take("resblock_kernel_sizes", list, [3, 7, 11])),
        "resblock_dilations": tuple(map(tuple, section.take("resblock_dilation_sizes", list, [[1, 3, 5]] * 3))),
        "activation": activation,
        "final": Final.TANH if tanh else Final.CLAMP,
        "final_bias": section.take("use_bias_at_final", bool, True),
    }


def _read_extension(
    section: Section, fields: dict[str, Any], windows: tuple[str, str], rates: list[int]
) -> ExtensionConfig:
    window = section.take(windows[0], int, 512)
    section.expect({windows[1]: window})
    generator = GeneratorConfig(**{**fields, "final": Final.NONE})
    bins = section.take("num_mels" if windows[0] == "n_fft" else "num_mel_channels", int, 64)
    require(bins == generator.mel_bins, f"{section.where}: mel bands", bins, f"must be {generator.mel_bins}")
    config = ExtensionConfig(generator=generator, window=window, hop=section.take("hop_length", int, 80))
    rule = f"must be {config.ratio} times input_sampling_rate={rates[0]}"
    require(rates[1] == config.ratio * rates[0], f"{section.where}: output_sampling_rate", rates[1], rule)
    return config


def _with_rate(fields: dict[str, Any], rate: int, extension: ExtensionConfig | None) -> VocoderConfig:
    """Build a vocoder whose first generator makes `rate` samples per second."""
    samples = GeneratorConfig(**fields).samples_per_row
    require(rate % samples == 0, "sampling rate", rate, f"must be a multiple of the {samples} samples of a mel row")
    return VocoderConfig(**fields, row_rate=rate // samples, extension=extension)


def _halvings(first: int, count: int) -> tuple[int, ...]:
    return tuple(first // 2**i for i in range(count + 1))


def write_header(config: VocoderConfig) -> dict[str, Any]:
    """Write the `vocoder` section of an LTX-2 header.

    Raises:
        ValueError: LTX-2's format cannot express the network; names what.
    """
    _require_published(config, "LTX-2")
    first = _write_generator(config)
    if config.extension is None:
        rate = {} if config.sample_rate == 24000 else {"output_sampling_rate": config.sample_rate}
        return {"vocoder": first | rate}
    extension = config.extension
    second = _write_generator(extension.generator) | {
        "apply_final_activation": False,
        "input_sampling_rate": config.first_rate,
        "output_sampling_rate": config.sample_rate,
        "hop_length": extension.hop,
        "n_fft": extension.window,
        "win_size": extension.window,
        "num_mels": extension.generator.mel_bins,
    }
    return {"vocoder": {"vocoder": first, "bwe": second}}


def _write_generator(config: GeneratorConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "upsample_initial_channel": config.channels[0],
        "resblock": "1",
        "stereo": True,
        "upsample_rates": list(config.rates),
        "upsample_kernel_sizes": list(config.kernels),
        "resblock_kernel_sizes": list(config.resblock_kernels),
        "resblock_dilation_sizes": [list(dilations) for dilations in config.resblock_dilations],
    }
    if config.activation is Activation.SNAKE:
        values |= {"resblock": "AMP1", "activation": "snakebeta"}
    if config.final is not Final.TANH:
        values["use_tanh_at_final"] = False
    if not config.final_bias:
        values["use_bias_at_final"] = False
    return values


def _require_published(config: VocoderConfig, where: str) -> None:
    """Refuse what no published format has a word for."""
    both = [config] if config.extension is None else [config, config.extension.generator]
    for part in both:
        halved = _halvings(part.channels[0], len(part.rates))
        require(part.channels == halved, "channels", part.channels, f"{where} halves them at each stage")
        require(
            part.mel_bins * part.audio_channels == ENDS, "mel_bins", part.mel_bins, f"{where} reads {ENDS} channels"
        )
        require(part.audio_channels == 2, "audio_channels", part.audio_channels, f"{where} is stereo")
        wanted = Activation.LEAKY_RELU if config.extension is None else Activation.SNAKE
        rule = f"{where} has snakes with an extension and leaky ramps without"
        require(part.activation is wanted, "activation", part.activation.value, rule)
    wanted = [Final.TANH] if config.extension is None else [Final.TANH, Final.CLAMP]
    require(config.final in wanted, "final", config.final.value, f"{where} has {' or '.join(wanted)} there")
    for part in both[1:]:
        rule = f"{where} limits the sum only"
        require(part.final is Final.NONE, "extension.generator.final", part.final.value, rule)


ACTIVATIONS = {Activation.LEAKY_RELU: "leaky_relu", Activation.SNAKE: "snakebeta"}
CLASSES = ("LTX2Vocoder", "LTX2VocoderWithBWE")
ALIASES = {"antialias_ratio": 2, "antialias_kernel_size": 12}


def read_diffusers(values: Header) -> VocoderConfig:
    """Read diffusers' config.json of the vocoder.

    Without a limit between the two generators (`final_act_fn` null, as published) diffusers leaves out a clamp that
    the weights were trained with: it is read as that clamp.

    Raises:
        ValueError: As `read_header`; also without a `_class_name`.
    """
    section = Section(values, "vocoder/config.json")
    name = section.take("_class_name", str)
    require(name in CLASSES, f"{section.where}._class_name", name, f"must be one of {', '.join(CLASSES)}")
    section.ignore("final_act_fn", "bwe_final_act_fn", *(key for key in values if key.startswith("_")))
    if name == CLASSES[0]:
        limit = values.get("final_act_fn", "tanh")
        fields = _read_other(section, "", 1024, Activation.LEAKY_RELU, [6, 5, 2, 2, 2], [16, 15, 8, 4, 4], limit)
        config = _with_rate(fields, section.take("output_sampling_rate", int, 24000), None)
    else:
        rates = [
            section.take(f"{side}_sampling_rate", int, rate) for side, rate in (("input", 16000), ("output", 48000))
        ]
        limit = values.get("bwe_final_act_fn")
        require(limit is None, f"{section.where}.bwe_final_act_fn", limit, "must be null: the sum is limited")
        second = _read_other(section, "bwe_", 512, Activation.SNAKE, [6, 5, 2, 2, 2], [12, 11, 4, 4, 4], None)
        extension = _read_extension(section, second, ("filter_length", "window_length"), rates)
        limit = values.get("final_act_fn")
        first = _read_other(section, "", 1536, Activation.SNAKE, [5, 2, 2, 2, 2, 2], [11, 4, 4, 4, 4, 4], limit)
        config = _with_rate(first, rates[0], extension)
    section.close()
    return config


def _read_other(
    section: Section,
    mark: str,
    width: int,
    activation: Activation,
    rates: list[int],
    kernels: list[int],
    limit: str | None,
) -> dict[str, Any]:
    """Read the fields of a generator in diffusers' config.json, beside its class's own defaults."""
    leaky = activation is Activation.LEAKY_RELU
    fixed = {"in_channels": ENDS, "out_channels": 2, "leaky_relu_negative_slope": 0.1, "antialias": not leaky}
    section.expect({f"{mark}{key}": value for key, value in (fixed | ALIASES).items()})
    section.expect({f"{mark}act_fn": ACTIVATIONS[activation]})
    rates = section.take(f"{mark}upsample_factors", list, rates)
    finals = {"tanh": Final.TANH} | ({} if leaky else {"clamp": Final.CLAMP, None: Final.CLAMP})
    require(limit in finals, f"{section.where}.{mark}final_act_fn", limit, f"must be one of {list(finals)}")
    return {
        "channels": _halvings(section.take(f"{mark}hidden_channels", int, width), len(rates)),
        "rates": tuple(rates),
        "kernels": tuple(section.take(f"{mark}upsample_kernel_sizes", list, kernels)),
        "resblock_kernels": tuple(section.take(f"{mark}resnet_kernel_sizes", list, [3, 7, 11])),
        "resblock_dilations": tuple(map(tuple, section.take(f"{mark}resnet_dilations", list, [[1, 3, 5]] * 3))),
        "activation": activation,
        "final": finals[limit],
        "final_bias": section.take(f"{mark}final_bias", bool, leaky),
    }


def write_diffusers(config: VocoderConfig) -> dict[str, Any]:
    """Write diffusers' config.json of the vocoder; the limit between the generators as published, null.

    Raises:
        ValueError: diffusers cannot express the network; names what.
    """
    _require_published(config, "diffusers")
    first = _write_other(config, "")
    if config.extension is None:
        limit = config.final.value
        return {"_class_name": CLASSES[0], **first, "final_act_fn": limit, "output_sampling_rate": config.sample_rate}
    extension = config.extension
    return {
        "_class_name": CLASSES[1],
        **first,
        "final_act_fn": None if config.final is Final.CLAMP else config.final.value,
        **_write_other(extension.generator, "bwe_"),
        "bwe_final_act_fn": None,
        "filter_length": extension.window,
        "window_length": extension.window,
        "hop_length": extension.hop,
        "num_mel_channels": extension.generator.mel_bins,
        "input_sampling_rate": config.first_rate,
        "output_sampling_rate": config.sample_rate,
    }


def _write_other(config: GeneratorConfig, mark: str) -> dict[str, Any]:
    values = {
        "in_channels": ENDS,
        "hidden_channels": config.channels[0],
        "out_channels": config.audio_channels,
        "upsample_kernel_sizes": list(config.kernels),
        "upsample_factors": list(config.rates),
        "resnet_kernel_sizes": list(config.resblock_kernels),
        "resnet_dilations": [list(dilations) for dilations in config.resblock_dilations],
        "act_fn": ACTIVATIONS[config.activation],
        "leaky_relu_negative_slope": 0.1,
        "antialias": config.activation is Activation.SNAKE,
        **ALIASES,
        "final_bias": config.final_bias,
    }
    return {mark + key: value for key, value in values.items()}


@functools.cache
def _abstract(config: VocoderConfig) -> PyTree:
    mel = jax.ShapeDtypeStruct((1, 1, config.mel_bins, config.audio_channels), jnp.float32)
    return jax.eval_shape(Vocoder(config).init, jax.random.key(0), mel)


COMPONENT = Component(
    name="vocoder",
    abstract=_abstract,
    read_own=VocoderConfig.from_dict,
    write_own=VocoderConfig.to_dict,
    namings={
        LTX2: Naming(
            prefixes=(PREFIX,),
            rules=original_rules,
            read_config=read_header,
            write_config=write_header,
            passed=(PREFIX + UNUSED,),
        ),
        DIFFUSERS: Naming(
            prefixes=("",),
            rules=diffusers_rules,
            read_config=read_diffusers,
            write_config=write_diffusers,
            passed=(UNUSED,),
            folder="vocoder",
        ),
    },
)
