"""`mmcl shards`: make, index, check and look at shards."""

from __future__ import annotations

import argparse
from importlib import import_module

ACTIONS = {
    "write": "mmcl.datamodules.write_command",
    "index": "mmcl.datamodules.index_command",
    "fetch": "mmcl.datamodules.fetch_command",
    "lint": "mmcl.datamodules.lint_command",
    "show": "mmcl.datamodules.show_command",
}
"""Action -> module with ``HELP``, ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit code."""


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Do what the arguments say; a module is imported when its action is asked for.

    Args:
        parser: of the whole command; actions become its parts, of its own class.
        arguments: what follows ``mmcl shards``.

    Returns:
        The exit code.
    """
    actions = parser.add_subparsers(dest="action", required=True, metavar=f"{{{','.join(ACTIONS)}}}")
    asked = arguments[0] if arguments else ""
    for name, place in ACTIONS.items():
        if asked in (name, "", "-h", "--help"):
            module = import_module(place)
            own = actions.add_parser(name, help=module.HELP, description=module.HELP)
            module.add_arguments(own)
            own.set_defaults(run=module.run)
        else:
            actions.add_parser(name)
    given = parser.parse_args(arguments)
    code: int = given.run(given)
    return code
