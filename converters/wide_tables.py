"""Modulation tables in float32 beside matrices that are not, as LTX-2.5's files have them: a fact that no config tells.

The tables keep their bytes whatever their type is. What is noted here is that they are to be loaded in float32, too.
"""

import dataclasses

import numpy as np

from omniforcing_jax.config import ModelConfig

from .plan import Plan

TABLES = ("table", "text_table", "cross_table_video", "cross_table_audio", "head_table")
MATRIX = "video/patchify/w"  # in the type of the other weights, in every file
NOTE = "modulation tables stay float32 beside {} matrices, as in the source"


def note_tables(plan: Plan) -> Plan:
    """Note in a transformer's config whether its tables are wider than its matrices; return other plans unchanged."""
    config = plan.source.config
    if not isinstance(config, ModelConfig):
        return plan
    types = {dtype for name, (dtype, _) in plan.layout.items() if name.rpartition("/")[2] in TABLES}
    matrix = plan.layout[MATRIX][0]
    has_wide = types == {np.dtype(np.float32)} and matrix not in types
    noted = dataclasses.replace(config, float32_tables=has_wide)
    notes = (*plan.source.notes, NOTE.format(matrix)) if has_wide else plan.source.notes
    return dataclasses.replace(plan, source=dataclasses.replace(plan.source, config=noted, notes=notes))
