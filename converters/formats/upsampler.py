"""LTX-2's latent upsamplers: their keys and configs in a file of their own and in diffusers.

Both formats have the same keys, without a prefix. There are two components, because a weights folder may have an
upsampler of each kind: of the picture, and of time. The config tells which one a file is.

Source: ltx-core@1.0.0:model/upsampler/model_configurator.py,
diffusers@0.42.1:pipelines/ltx2/latent_upsampler.py.
"""

import functools
from collections.abc import Iterator, Mapping

from jaxtyping import PyTree

from omniforcing_jax.codecs.upsampler import init_upsampler
from omniforcing_jax.codecs.upsampler_config import RATIOS, Resampling, UpsamplerConfig

from ..component import DIFFUSERS, UPSAMPLER, Component, Naming
from ..config_table import ConfigTable
from ..keys import Fixed, Form, Key, Repeated
from ..rules import Axes, Rule

SPATIAL, TEMPORAL = "spatial_upsampler", "temporal_upsampler"
CLASS = "LTX2LatentUpsamplerModel"  # in diffusers
KERNEL_3D: Axes = (2, 3, 4, 1, 0)
KERNEL_2D: Axes = (2, 3, 1, 0)
LANDMARK = "initial_conv.weight"  # that only upsamplers have
RATIONAL = "upsampler.conv.weight"


def make_rules(config: UpsamplerConfig) -> tuple[Rule, ...]:
    """List the keys, which are the same in both formats."""
    rules = [*_conv("initial_conv"), *_norm("initial_norm"), *_conv("final_conv")]
    for stage in ("res_blocks", "post_upsample_res_blocks"):
        for i in range(config.layers):
            for j in (1, 2):
                rules += _conv(f"{stage}_{i}/conv{j}", f"{stage}.{i}.conv{j}")
                rules += _norm(f"{stage}_{i}/norm{j}", f"{stage}.{i}.norm{j}")
    is_rational = config.resampling is Resampling.RATIONAL
    kernel = KERNEL_3D if config.doubles_time else KERNEL_2D
    rules += _conv("upsampler/conv", "upsampler.conv" if is_rational else "upsampler.0", kernel)
    if is_rational:
        rules.append(Rule("constants/upsampler/blur", "upsampler.blur_down.kernel", KERNEL_2D))
    return tuple(rules)


def _conv(native: str, source: str = "", kernel: Axes = KERNEL_3D) -> Iterator[Rule]:
    yield Rule(f"params/{native}/kernel", f"{source or native}.weight", kernel)
    yield Rule(f"params/{native}/bias", f"{source or native}.bias")


def _norm(native: str, source: str = "") -> Iterator[Rule]:
    yield Rule(f"params/{native}/scale", f"{source or native}.weight")
    yield Rule(f"params/{native}/bias", f"{source or native}.bias")


def _read_axes(values: tuple[bool, bool, bool, float]) -> tuple[Resampling, float]:
    """Read the resampling off spatial_upsample, temporal_upsample, and ratio and scale of the picture."""
    space, time, is_rational, scale = values
    if not space and not time:
        raise ValueError("spatial_upsample or temporal_upsample must be true")
    if time or not is_rational:  # the scale is not read then
        kinds = {(True, True): Resampling.ALL, (False, True): Resampling.TIME, (True, False): Resampling.SPACE}
        return kinds[space, time], 2.0 if space else 1.0
    if scale not in RATIOS:
        raise ValueError(f"the scale {scale} must be one of {', '.join(map(str, RATIOS))}")
    return Resampling.RATIONAL, scale


def _write_axes(settings: tuple[Resampling, float]) -> tuple[bool, bool, bool, float]:
    kind, scale = settings
    time = kind in (Resampling.TIME, Resampling.ALL)
    return kind is not Resampling.TIME, time, kind is Resampling.RATIONAL, scale


AXES = Form(kind=(bool, bool, bool, float), to_native=_read_axes, to_source=_write_axes)


def _table(where: str, class_name: str, width: int, rational: str, scale: str, is_rational: bool) -> ConfigTable:
    """Return the table of a format.

    Args:
        where: Name of the config in messages.
        class_name: The class that the config names.
        width: Width where the key is absent.
        rational: Key that says whether the resampling is rational.
        scale: Key of the scale.
        is_rational: Whether it is rational where the key is absent.
    """
    axes = ("spatial_upsample", "temporal_upsample", rational, scale)
    return ConfigTable(
        config=UpsamplerConfig,
        where=where,
        entries=(
            Repeated("_class_name", lambda config: class_name, checked=False),
            Fixed({"dims": 3}),
            Key("latent_channels", "in_channels", int, 128),
            Key("width", "mid_channels", int, width),
            Key("layers", "num_blocks_per_stage", int, 4),
            Key(("resampling", "scale"), axes, AXES, (True, False, is_rational, 2.0)),
        ),
        unread=("_.*",),
    )


HEADER = _table("header config", "LatentUpsampler", 512, "rational_resampler", "spatial_scale", False)
MODEL_CONFIG = _table("config.json", CLASS, 1024, "use_rational_resampler", "rational_spatial_scale", True)


@functools.cache
def _abstract(config: UpsamplerConfig) -> PyTree:
    return init_upsampler(config)


def _component(name: str, folder: str) -> Component:
    return Component(
        name=name,
        config=UpsamplerConfig,
        abstract=_abstract,
        namings={
            UPSAMPLER: Naming(rules=make_rules, table=HEADER),
            DIFFUSERS: Naming(rules=make_rules, table=MODEL_CONFIG, folder=folder),
        },
    )


COMPONENTS = (_component(SPATIAL, "latent_upsampler"), _component(TEMPORAL, "temporal_latent_upsampler"))


def name_of(config: UpsamplerConfig) -> str:
    """Return the component that an upsampler is."""
    return TEMPORAL if config.doubles_time else SPATIAL


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> UpsamplerConfig:
    """Read an upsampler off its shapes, for a file without a config.

    Raises:
        ValueError: They are not an upsampler's, or fit two of them; names the key.
    """
    key = RATIONAL if RATIONAL in shapes else "upsampler.0.weight"
    for name, axes in ((LANDMARK, (5,)), (key, (4, 5))):
        if len(shapes.get(name, ())) not in axes:
            raise ValueError(f"{name} has shape {shapes.get(name)}, expected that of a latent upsampler")
    width, channels = shapes[LANDMARK][:2]
    cells, kind, scale = shapes[key][0] // max(width, 1), Resampling.SPACE, 2.0
    if key == RATIONAL:
        scales = [each for each, (side, _) in RATIOS.items() if side**2 == cells]
        if len(scales) != 1:
            raise ValueError(f"{key} has shape {shapes[key]}, which fits the scales {scales}; a config must say it")
        kind, scale = Resampling.RATIONAL, scales[0]
    elif len(shapes[key]) == 5:
        kind, scale = (Resampling.TIME, 1.0) if cells == 2 else (Resampling.ALL, 2.0)
    layers = {name.split(".")[1] for name in shapes if name.startswith("res_blocks.")}
    return UpsamplerConfig(latent_channels=channels, width=width, layers=len(layers), resampling=kind, scale=scale)
