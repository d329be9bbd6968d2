"""The command line: parses, calls, shows."""

from mlff_distiller.cli.main import app, main

__all__ = ["app", "main"]
