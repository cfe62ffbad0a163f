"""`python -m omniforcing_jax`."""

import sys

from omniforcing_jax.cli import main

sys.exit(main())
