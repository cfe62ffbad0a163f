"""`python -m omniforcing_jax`."""

import sys

from omniforcing_jax.cli.main import main

sys.exit(main())
