"""The commands in a checkout: `python -m converters`."""

import signal
import sys

from .cli import main

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that half-written files are removed
sys.exit(main())
