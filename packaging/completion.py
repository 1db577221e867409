"""Print what makes a shell complete xskd's arguments, made from the parser itself: completion.py bash|zsh."""

from __future__ import annotations

import argparse
import sys

import shtab

from xskd import cli

FILES = {"FILE", "PATH"}  # what the parser calls an argument that names a file


def mark_files(parser: argparse.ArgumentParser) -> None:
    """Let arguments that name files be completed with files, in the parser and those of its verbs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                mark_files(verb)
        elif action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # the way shtab wants to be told


if __name__ == "__main__":
    parser = cli._parser()
    mark_files(parser)
    print(shtab.complete(parser, shell=sys.argv[1]))
