"""The one trainer: state, step, loop, checkpoint, data. Its libraries are the extra `train`."""

from omniforcing_jax.io.extras import need

need("optax", "orbax", "grain", "array_record", extra="train")
