"""The main job: stream a default prompt of chime, look at what came out, say how good it is. `make demo` runs it.

Expect: out/demo.mp4, out/demo.webp, out/demo.png and a verdict, within a minute after installation.

    python -m experiments.demo --prompt "a red ball and a blue ball" --seconds 13
"""

import sys

import tyro

from omniforcing_jax.chime.demo import Demo, main

if __name__ == "__main__":
    sys.exit(main(tyro.cli(Demo, description=__doc__)))
