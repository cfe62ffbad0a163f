"""How close a low-precision result must be if it was computed in float32 and rounded at the end."""

import numpy as np


def assert_rounded_once(found, exact):
    """Check that bfloat16 numbers are within half a unit in the last of their eight bits, plus float32's own error."""
    exact = np.asarray(exact, np.float64)
    error = np.abs(np.asarray(found, np.float64) - exact)
    np.testing.assert_array_less(error, 2**-8 * np.abs(exact) * 1.001 + 2e-6)
