"""The command line of converters: options, their checks, and the work behind them."""

from .dispatch import main, parse

__all__ = ["main", "parse"]
