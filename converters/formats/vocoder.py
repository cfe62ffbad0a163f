"""The vocoders: their keys and config in LTX-2's single file and in diffusers, 2.0 and 2.3.

A config with a `bwe` part (in diffusers: another class) has 2.3's pair of generators. Filters and bases of 2.3 are in
the file and are kept. Nothing uses the inverse of the Fourier basis, so it passes through.

Source: ltx-core 1.0.0, ltx_core.model.audio_vae.model_configurator; diffusers 0.42.1, LTX2Vocoder, LTX2VocoderWithBWE.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from omniforcing_jax.codecs.generator import Activation, Final, GeneratorConfig
from omniforcing_jax.codecs.vocoder import Vocoder, VocoderConfig
from omniforcing_jax.strict_json import MOST_PARTS, require

from ..component import DIFFUSERS, LTX2, Component, Naming
from ..config_table import ConfigTable, Generations
from ..keys import LIST, LISTS, Constant, Entry, Fixed, Form, Key, Repeated, choice
from ..rules import Axes, Rule
from ..section import REQUIRED, Section

PREFIX = "vocoder."
KERNEL: Axes = (2, 1, 0)
TRANSPOSED_KERNEL: Axes = (2, 0, 1)
BASES = ("mel_stft.mel_basis", "mel_stft.stft_fn.forward_basis")
UNUSED = "mel_stft.stft_fn.inverse_basis"
ENDS = 128  # channels that every published vocoder reads: two times 64 mel bins


class GeneratorNames(NamedTuple):
    """What a format calls the parts of a generator."""

    first: str
    last: str
    up: str
    blocks: str
    last_act: str
    down_filter: str


ORIGINAL = GeneratorNames("conv_pre", "conv_post", "ups", "resblocks", "act_post", "downsample.lowpass.filter")
OTHER = GeneratorNames("conv_in", "conv_out", "upsamplers", "resnets", "act_out", "downsample.filter")


def make_rules(config: VocoderConfig, names: GeneratorNames) -> tuple[Rule, ...]:
    """List the keys of a format, without its prefix."""
    if config.extension is None:
        return tuple(_generator(config, names, "", ""))
    return (
        *_generator(config, names, "", "vocoder."),
        *_generator(config.extension.generator, names, "extension/generator/", "bwe_generator."),
        Rule("constants/extension/mel/mel_basis", BASES[0]),
        Rule("constants/extension/mel/forward_basis", BASES[1], KERNEL),
    )


def _generator(config: GeneratorConfig, names: GeneratorNames, native: str, source: str) -> Iterator[Rule]:
    yield from _conv(f"{native}conv_in/conv", f"{source}{names.first}")
    yield from _conv(f"{native}conv_out/conv", f"{source}{names.last}")
    yield from _act(names, f"{native}act_out", f"{source}{names.last_act}")
    count = len(config.resblock_kernels)
    for stage in range(len(config.rates)):
        yield from _conv(f"{native}up_{stage}", f"{source}{names.up}.{stage}", TRANSPOSED_KERNEL)
        for j, dilations in enumerate(config.resblock_dilations):
            block, other = f"{native}stage_{stage}_block_{j}", f"{source}{names.blocks}.{stage * count + j}"
            for i in range(len(dilations)):
                for side in (1, 2):
                    yield from _conv(f"{block}/conv{side}_{i}/conv", f"{other}.convs{side}.{i}")
                    yield from _act(names, f"{block}/act{side}_{i}", f"{other}.acts{side}.{i}")


def _conv(native: str, source: str, axes: Axes = KERNEL) -> Iterator[Rule]:
    yield Rule(f"params/{native}/kernel", f"{source}.weight", axes)
    yield Rule(f"params/{native}/bias", f"{source}.bias")


def _act(names: GeneratorNames, native: str, source: str) -> Iterator[Rule]:
    for name in ("alpha", "beta"):
        yield Rule(f"params/{native}/{name}", f"{source}.act.{name}")
    yield Rule(f"constants/{native}/upsample", f"{source}.upsample.filter", KERNEL)
    yield Rule(f"constants/{native}/downsample", f"{source}.{names.down_filter}", KERNEL)


def original_rules(config: VocoderConfig) -> tuple[Rule, ...]:
    """List the keys of LTX-2's single file."""
    return tuple(Rule(rule.native, PREFIX + rule.source, rule.axes) for rule in make_rules(config, ORIGINAL))


def _halve(values: tuple[int, list[Any]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the widths, halved at each stage, and the upsampling factors of the stages."""
    first, rates = values
    fits = len(rates) <= MOST_PARTS and all(type(rate) is int and rate >= 1 for rate in rates)
    require(fits, "upsampling factors", rates, f"must be up to {MOST_PARTS} whole numbers from 1 up")
    return tuple(first // 2**i for i in range(len(rates) + 1)), tuple(rates)


WIDTHS = Form(kind=(int, list), to_native=_halve, to_source=lambda x: (x[0][0], list(x[1])))
IS_TANH = choice({True: Final.TANH, False: Final.CLAMP})


@dataclass(frozen=True)
class SampleRate(Entry):
    """Samples per second of the first generator; native is the number of mel rows per second."""

    source: str
    default: Any = REQUIRED
    sparse: bool = False

    def read(self, section: Section, native: dict[str, Any]) -> None:
        """Take the rate; upsampling factors are read before."""
        rate, samples = section.take(self.source, int, self.default), math.prod(native["rates"])
        rule = f"must be a multiple of the {samples} samples of a mel row"
        require(rate % samples == 0, f"{section.where}.{self.source}", rate, rule)
        native["row_rate"] = rate // samples

    def write(self, config: VocoderConfig) -> dict[str, Any]:
        """Return the rate."""
        is_default = self.sparse and config.first_rate == self.default
        return {} if is_default else {self.source: config.first_rate}


def _refuse(where: str, config: VocoderConfig) -> None:
    """Refuse networks that no published format has keys for."""
    first = config
    generators = [first] if config.extension is None else [first, config.extension.generator]
    activation = Activation.LEAKY_RELU if config.extension is None else Activation.SNAKE
    for each in generators:
        halved = _halve((each.channels[0], list(each.rates)))[0]
        rule = f"{where} halves them at each stage, expected {halved}"
        require(each.channels == halved, "channels", each.channels, rule)
        ends = each.mel_bins * each.audio_channels
        require(ends == ENDS, "mel_bins", each.mel_bins, f"{where} reads {ENDS} channels: mel_bins * audio_channels")
        require(each.audio_channels == 2, "audio_channels", each.audio_channels, f"must be 2, {where} is stereo")
        rule = f"{where} has 'snake' with an extension and 'leaky_relu' without"
        require(each.activation is activation, "activation", each.activation.value, rule)
    finals = [Final.TANH] if config.extension is None else [Final.TANH, Final.CLAMP]
    require(config.final in finals, "final", config.final.value, f"{where} has {' or '.join(finals)} there")
    for each in generators[1:]:
        rule = f"must be 'none', {where} limits only the sum of both generators"
        require(each.final is Final.NONE, "extension.generator.final", each.final.value, rule)


def _header_generator(native: str, source: str, activation: Activation) -> tuple[Entry, ...]:
    """Keys of one generator in an LTX-2 header."""
    return (
        Fixed({f"{source}stereo": True}),
        Constant(f"{native}activation", activation),
        Key(
            (f"{native}channels", f"{native}rates"),
            (f"{source}upsample_initial_channel", f"{source}upsample_rates"),
            WIDTHS,
            (1024, [6, 5, 2, 2, 2]),
        ),
        Key(f"{native}kernels", f"{source}upsample_kernel_sizes", LIST, [16, 15, 8, 4, 4]),
        Key(f"{native}resblock_kernels", f"{source}resblock_kernel_sizes", LIST, [3, 7, 11]),
        Key(f"{native}resblock_dilations", f"{source}resblock_dilation_sizes", LISTS, [[1, 3, 5]] * 3),
        Key(f"{native}final_bias", f"{source}use_bias_at_final", bool, True, sparse=True),
    )


def _extension(source: str, window: str, same_window: str, bins: str) -> tuple[Entry, ...]:
    """Keys of the extension beside its generator's, which the formats call differently."""
    return (
        Constant("extension.generator.final", Final.NONE),
        Key("extension.window", f"{source}{window}", int, 512),
        Repeated(f"{source}{same_window}", "extension.window", rule=f", as {window}"),
        Key("extension.hop", f"{source}hop_length", int, 80),
        Repeated(f"{source}{bins}", "extension.generator.mel_bins", 64),
    )


HEADER_2_0 = ConfigTable(
    config=VocoderConfig,
    where="header config, vocoder",
    section="vocoder",
    entries=(
        *_header_generator("", "", Activation.LEAKY_RELU),
        Fixed({"resblock": "1"}),
        Key("final", "use_tanh_at_final", IS_TANH, True, sparse=True),
        SampleRate("output_sampling_rate", 24000, sparse=True),
    ),
    refuse=functools.partial(_refuse, "LTX-2"),
)
HEADER_2_3 = ConfigTable(
    config=VocoderConfig,
    where="header config, vocoder",
    section="vocoder",
    entries=(
        *_header_generator("", "vocoder.", Activation.SNAKE),
        *_header_generator("extension.generator.", "bwe.", Activation.SNAKE),
        Fixed({"vocoder.resblock": "AMP1", "vocoder.activation": "snakebeta"}, required=True),
        Fixed({"bwe.resblock": "AMP1", "bwe.activation": "snakebeta"}, required=True),
        Key("final", "vocoder.use_tanh_at_final", IS_TANH, True, sparse=True),
        SampleRate("bwe.input_sampling_rate"),
        Repeated("bwe.output_sampling_rate", "sample_rate", REQUIRED),
        Fixed({"bwe.apply_final_activation": False}),
        Repeated("bwe.use_tanh_at_final", lambda config: False, checked=False),
        *_extension("bwe.", "n_fft", "win_size", "num_mels"),
    ),
    unread=(r"vocoder\.output_sampling_rate",),
    refuse=functools.partial(_refuse, "LTX-2"),
)

ACTIVATIONS = {Activation.LEAKY_RELU: "leaky_relu", Activation.SNAKE: "snakebeta"}
CLASSES = ("LTX2Vocoder", "LTX2VocoderWithBWE")


def _other_generator(
    native: str, mark: str, activation: Activation, width: int, rates: list[int], kernels: list[int]
) -> tuple[Entry, ...]:
    """Keys of one generator in diffusers' config, with the defaults of its class."""
    is_leaky = activation is Activation.LEAKY_RELU
    fixed = {"in_channels": ENDS, "out_channels": 2, "act_fn": ACTIVATIONS[activation], "antialias": not is_leaky}
    fixed |= {"leaky_relu_negative_slope": 0.1, "antialias_ratio": 2, "antialias_kernel_size": 12}
    widths = (f"{mark}hidden_channels", f"{mark}upsample_factors")
    return (
        Fixed({mark + key: value for key, value in fixed.items()}),
        Constant(f"{native}activation", activation),
        Key((f"{native}channels", f"{native}rates"), widths, WIDTHS, (width, rates)),
        Key(f"{native}kernels", f"{mark}upsample_kernel_sizes", LIST, kernels),
        Key(f"{native}resblock_kernels", f"{mark}resnet_kernel_sizes", LIST, [3, 7, 11]),
        Key(f"{native}resblock_dilations", f"{mark}resnet_dilations", LISTS, [[1, 3, 5]] * 3),
        Key(f"{native}final_bias", f"{mark}final_bias", bool, is_leaky),
    )


# diffusers leaves out a clamp between the generators (null, as published) that the weights were trained with.
LIMITS = choice({None: Final.CLAMP, "clamp": Final.CLAMP, "tanh": Final.TANH})

MODEL_CONFIG_2_0 = ConfigTable(
    config=VocoderConfig,
    where="vocoder/config.json",
    entries=(
        Fixed({"_class_name": CLASSES[0]}, required=True),
        *_other_generator("", "", Activation.LEAKY_RELU, 1024, [6, 5, 2, 2, 2], [16, 15, 8, 4, 4]),
        Key("final", "final_act_fn", choice({"tanh": Final.TANH}), "tanh"),
        SampleRate("output_sampling_rate", 24000),
    ),
    unread=("bwe_final_act_fn", "_.*"),
    refuse=functools.partial(_refuse, "diffusers"),
)
MODEL_CONFIG_2_3 = ConfigTable(
    config=VocoderConfig,
    where="vocoder/config.json",
    entries=(
        Fixed({"_class_name": CLASSES[1]}, required=True),
        *_other_generator("", "", Activation.SNAKE, 1536, [5, 2, 2, 2, 2, 2], [11, 4, 4, 4, 4, 4]),
        *_other_generator("extension.generator.", "bwe_", Activation.SNAKE, 512, [6, 5, 2, 2, 2], [12, 11, 4, 4, 4]),
        Key("final", "final_act_fn", LIMITS, None),
        Fixed({"bwe_final_act_fn": None}),
        SampleRate("input_sampling_rate", 16000),
        Repeated("output_sampling_rate", "sample_rate", 48000),
        *_extension("", "filter_length", "window_length", "num_mel_channels"),
    ),
    unread=("_.*",),
    refuse=functools.partial(_refuse, "diffusers"),
)


def _find_model_config(keys: Mapping[str, Any]) -> ConfigTable:
    name = keys.get("_class_name")
    require(name in CLASSES, "vocoder/config.json._class_name", name, f"must be one of {', '.join(CLASSES)}")
    return MODEL_CONFIG_2_0 if name == CLASSES[0] else MODEL_CONFIG_2_3


HEADER = Generations(
    of_source=lambda keys: HEADER_2_3 if any(key.startswith("vocoder.bwe.") for key in keys) else HEADER_2_0,
    of_native=lambda config: HEADER_2_0 if config.extension is None else HEADER_2_3,
)
MODEL_CONFIG = Generations(
    of_source=_find_model_config,
    of_native=lambda config: MODEL_CONFIG_2_0 if config.extension is None else MODEL_CONFIG_2_3,
)


@functools.cache
def _abstract(config: VocoderConfig) -> PyTree:
    mel = jax.ShapeDtypeStruct((1, 1, config.mel_bins, config.audio_channels), jnp.float32)
    return jax.eval_shape(Vocoder(config).init, jax.random.key(0), mel)


COMPONENT = Component(
    name="vocoder",
    config=VocoderConfig,
    abstract=_abstract,
    namings={
        LTX2: Naming(prefixes=(PREFIX,), rules=original_rules, table=HEADER, passed=(PREFIX + UNUSED,)),
        DIFFUSERS: Naming(
            rules=lambda config: make_rules(config, OTHER),
            table=MODEL_CONFIG,
            passed=(UNUSED,),
            folder="vocoder",
        ),
    },
)
