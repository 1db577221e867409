"""Rules as the XDP program reads them, compiled once: where they are looked at, not where they are installed.

A look at the machine, in a thread of its own, asks for every set of rules that is wanted, so that what cannot
be compiled is found before anything has changed and the supervisor's loop never waits for a compiler. What it
made is kept for the loop; an image is megabytes of mostly zeros, so it is kept compressed.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from xskd.classify import compile_rules
from xskd.rules import RuleSet

SETS = 64  # that are kept: more than one machine has interfaces


def image(rules: RuleSet, shares: int) -> bytes | None:
    """An image of struct xskd_rules; None for rules that need none. `shares` queues share each limit.

    Raises RulesError if they do not fit.
    """
    return None if rules.plain else zlib.decompress(_compressed(rules, shares))


def check(rules: RuleSet, shares: int) -> None:
    """Raise RulesError if they do not fit; else have the image ready."""
    if not rules.plain:
        _compressed(rules, shares)


@lru_cache(SETS)
def _compressed(rules: RuleSet, shares: int) -> bytes:
    return zlib.compress(compile_rules(rules, queues=shares), 1)
