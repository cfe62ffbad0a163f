"""The command line of converters: options, their checks, and the work behind them."""

from .dispatch import main, parse, prepare

__all__ = ["main", "parse", "prepare"]
