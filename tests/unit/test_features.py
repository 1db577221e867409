"""What drivers say they can do: the kernel's bits in words, and kernels that do not tell."""

from __future__ import annotations

import pytest

from xskd import features
from xskd.features import Features


def test_every_bit_has_its_name() -> None:
    answer = {"xdp_features": 0b1111111, "xdp_zc_max_segs": 17}
    assert features._features(answer) == Features(frozenset(features.ACTIONS), 17)
    one = {"xdp_features": 1 << 3}  # NETDEV_XDP_ACT_XSK_ZEROCOPY; no zc-max-segs before 6.6
    assert features._features(one) == Features(frozenset({"xsk-zerocopy"}), 0)


def test_bits_of_a_newer_kernel_are_left_aside() -> None:
    assert features._features({"xdp_features": 1 << 40 | 1}) == Features(frozenset({"basic"}), 0)


def test_a_kernel_without_the_family_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(features, "FAMILY", "nonesuch")
    assert features.read_features([1, 2]) == {1: None, 2: None}
    assert not caplog.records
