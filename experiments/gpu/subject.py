"""What the parts measure: a preset that streams."""

from omniforcing_jax.pipeline.checks import student_sampler
from omniforcing_jax.pipeline.pipeline import PipelineConfig
from omniforcing_jax.pipeline.presets import PRESETS


def student_preset(name: str) -> PipelineConfig:
    """Return a preset by its name.

    Raises:
        ValueError: if there is none of this name, or it is no causal student.
    """
    if name not in PRESETS:
        raise ValueError(f"--preset {name}: must be one of {', '.join(PRESETS)}")
    student_sampler(PRESETS[name])
    return PRESETS[name]
