"""`python -m omniforcing_jax`: the program `omniforcing`, also where it is not installed."""

import sys

from omniforcing_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
