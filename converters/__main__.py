"""`python -m converters`."""

import signal
import sys

from converters.cli import main

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that what is half written is removed
sys.exit(main())
