"""The command line in this process, as tests of commands have it."""

from tests.cli.conftest import steer_cli

__all__ = ["steer_cli"]
