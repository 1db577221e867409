"""What NICs count as lost, in and out: which of a driver's many names mean that, and sums never go back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping

import pytest
from fakes import StillLoop

from xskd import nic
from xskd.nic import Key, Nics, Reading, Totals, loss

# Per driver: names of its counters with queue 3 in them that mean no loss of a queue; and names that do, with
# what becomes of them.
DRIVERS: dict[str, tuple[str, dict[str, str]]] = {
    "veth": (
        "peer_ifindex, rx_queue_3_xdp_packets, rx_queue_3_xdp_bytes, rx_queue_3_xdp_redirect, "
        "rx_queue_3_xdp_tx, tx_queue_3_xdp_xmit, rx_pp_recycle_ring_full",
        {
            "rx_queue_3_drops": "rx_drops",
            "rx_queue_3_xdp_drops": "rx_xdp_drops",
            "rx_queue_3_xdp_tx_errors": "rx_xdp_tx_errors",
            "tx_queue_3_xdp_xmit_errors": "tx_xdp_xmit_errors",
        },
    ),
    "virtio_net": (
        "rx3_packets, rx3_bytes, rx3_xdp_redirects, rx3_kicks, tx3_tx_timeouts, "
        "tx3_xsk_devfull, rx_queue_3_packets",
        {
            "rx3_drops": "rx_drops",
            "rx3_xdp_drops": "rx_xdp_drops",
            "rx_queue_3_drops": "rx_drops",  # before Linux 6.10
            "rx_queue_3_xdp_drops": "rx_xdp_drops",
            "tx3_xdp_tx_drops": "tx_xdp_tx_drops",
            "tx_queue_3_xdp_tx_drops": "tx_xdp_tx_drops",  # before Linux 6.10
        },
    ),
    "igb, igc": (
        "rx_missed_errors, rx_no_buffer_count, rx_queue_3_packets, rx_queue_3_csum_err, tx_queue_3_restart",
        {
            "rx_queue_3_drops": "rx_drops",
            "rx_queue_3_alloc_failed": "rx_alloc_failed",
        },
    ),
    "ixgbe": (
        "rx_queue_3_packets, fdir_miss, rx_no_dma_resources, rx_pb_3_pxon",
        {},
    ),
    "i40e": (
        "rx-3.packets, tx-3.bytes, port.rx_dropped, veb.tc_3_rx_packets, rx_alloc_fail",
        {},
    ),
    "ice": (
        "rx_queue_3_packets, rx_dropped.nic, rx_priority_3_xon.nic, rx_buf_failed",
        {},
    ),
    "mlx5_core": (
        "rx3_packets, rx3_csum_none, rx3_removed_vlan_packets, rx3_mpwqe_filler_cqes, rx3_arfs_err, "
        "rx3_pp_recycle_ring_full, rx_out_of_buffer, rx_prio3_discards, rx_prio3_buf_discard, "
        "ch3_events, ptp_rq3_wqe_err",
        {
            "rx3_wqe_err": "rx_wqe_err",
            "rx3_buff_alloc_err": "rx_buff_alloc_err",
            "rx3_oversize_pkts_sw_drop": "rx_oversize_pkts_sw_drop",
            "rx3_xdp_drop": "rx_xdp_drop",
            "rx3_xdp_tx_full": "rx_xdp_tx_full",
            "rx3_xdp_tx_err": "rx_xdp_tx_err",
            "rx3_xsk_xdp_drop": "rx_xsk_xdp_drop",
            "rx3_xsk_buff_alloc_err": "rx_xsk_buff_alloc_err",
            "tx3_dropped": "tx_dropped",
            "tx3_xdp_err": "tx_xdp_err",
            "tx3_xdp_full": "tx_xdp_full",
        },
    ),
    "ena": (
        "queue_3_rx_cnt, queue_3_rx_bad_csum, queue_3_rx_csum_bad, queue_3_rx_refil_partial, "
        "queue_3_rx_xdp_pass, rx_drops",
        {
            "queue_3_rx_page_alloc_fail": "rx_page_alloc_fail",
            "queue_3_rx_skb_alloc_fail": "rx_skb_alloc_fail",
            "queue_3_rx_dma_mapping_err": "rx_dma_mapping_err",
            "queue_3_rx_xdp_drop": "rx_xdp_drop",
            "queue_3_tx_dma_mapping_err": "tx_dma_mapping_err",
        },
    ),
    "bnxt_en": (
        "[3]: rx_ucast_packets, [3]: rx_l4_csum_errors, [3]: rx_resets, [3]: missed_irqs, [3]: "
        "tx_ucast_packets, rx_total_discard_pkts, pfc_pri3_rx_transitions",
        {
            "[3]: rx_discards": "rx_discards",
            "[3]: rx_errors": "rx_errors",
            "[3]: rx_buf_errors": "rx_buf_errors",
            "[3]: rx_oom_discards": "rx_oom_discards",
            "[3]: tx_discards": "tx_discards",
            "[3]: tx_errors": "tx_errors",
        },
    ),
    "gve": (
        "rx_posted_desc[3], rx_copybreak_pkt[3], rx_xdp_redirect[3], "
        "rx_dropped, rx_buf_alloc_fail, adminq_get_ptype_map_cnt",
        {
            "rx_dropped_pkt[3]": "rx_dropped_pkt",
            "rx_queue_drop_cnt[3]": "rx_queue_drop_cnt",
            "rx_no_buffers_posted[3]": "rx_no_buffers_posted",
            "rx_drops_packet_over_mru[3]": "rx_drops_packet_over_mru",
            "rx_drops_invalid_checksum[3]": "rx_drops_invalid_checksum",
            "rx_xdp_drop[3]": "rx_xdp_drop",
            "rx_xdp_redirect_errors[3]": "rx_xdp_redirect_errors",
            "rx_xdp_alloc_fails[3]": "rx_xdp_alloc_fails",
            "tx_dma_mapping_error[3]": "tx_dma_mapping_error",
        },
    ),
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_names_of_drivers(driver: str) -> None:
    others, losses = DRIVERS[driver]
    assert {name: loss(name) for name in others.split(", ")} == dict.fromkeys(others.split(", "))
    assert {name: loss(name) for name in losses} == {name: (3, stat) for name, stat in losses.items()}


def test_the_number_of_a_queue_may_have_more_digits_and_is_nobody_elses() -> None:
    assert loss("rx_queue_127_drops") == (127, "rx_drops")
    assert loss("rx10_xsk_xdp_drop") == (10, "rx_xsk_xdp_drop")
    assert loss("rx_err_64") is None  # no queue


# ---- sums -----------------------------------------------------------------------------------------


def reading(ifindex: int = 1, **counters: int) -> Reading:
    """Make a reading of queue 0."""
    given: Mapping[Key, int] = {(0, stat): value for stat, value in counters.items()}
    return Reading(ifindex, given)


def test_sums_begin_with_what_the_kernel_has_and_never_go_back() -> None:
    totals, seen = Totals(), []
    for each in (
        reading(rx_drops=100),
        reading(rx_drops=105),
        reading(rx_drops=3),  # the driver began anew
        reading(),  # the queue is away
        reading(rx_drops=4),
        reading(2, rx_drops=50),  # another interface of this name, which has lost more already
        reading(2, rx_drops=51),
    ):
        totals.add(each)
        seen.append(totals.by_queue[0]["rx_drops"])
    assert seen == [100, 105, 108, 108, 109, 159, 160]


Answer = Mapping[str, Reading | Exception] | Exception


class Kernel:
    """What `nic.read` answers, and what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = {}
        self.asked: list[tuple[str, ...]] = []

    def read(self, names: tuple[str, ...]) -> dict[str, Reading | Exception]:
        self.asked.append(names)
        if isinstance(self.answer, Exception):
            raise self.answer
        return dict(self.answer)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr(nic, "read", made.read)
    yield made


def readings(kernel: Kernel, nics: Nics, *answers: Answer) -> int:
    """Let time pass for each of these answers; how many readings are still to come."""

    async def reading() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, StillLoop)
        for answer in answers:
            kernel.answer = answer
            nics.start()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        due = [delay for delay, _ in loop.timers]
        assert set(due) <= {nic.READ_SECONDS}
        nics.close()
        return len(due)

    with asyncio.Runner(loop_factory=StillLoop) as runner:
        return runner.run(reading())


def test_an_interface_that_is_not_there_keeps_what_it_had(kernel: Kernel) -> None:
    nics = Nics(lambda: ["eth1", "eth2"])
    assert nics.received("eth1", 0) == {}
    assert readings(kernel, nics, {"eth1": reading(rx_drops=5)}, {}, {"eth1": reading(2, rx_drops=1)}) == 3
    assert kernel.asked == [("eth1", "eth2")] * 3
    assert nics.received("eth1", 0) == {"rx_drops": 6}
    assert nics.received("eth1", 1) == nics.received("eth1") == nics.received("eth2", 0) == {}


def test_what_was_lost_on_the_way_out_is_told_apart(kernel: Kernel) -> None:
    nics = Nics(lambda: ["eth1"])
    readings(kernel, nics, {"eth1": reading(rx_drops=5, tx_xdp_xmit_errors=7)})
    assert nics.received("eth1", 0) == {"rx_drops": 5}
    assert nics.sent("eth1", 0) == {"tx_xdp_xmit_errors": 7}


def test_a_kernel_that_refuses_is_told_of_once_and_asked_again(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    nics, no = Nics(lambda: ["eth1"]), PermissionError(1, "no")
    with caplog.at_level(logging.WARNING, "xskd"):
        assert (
            readings(kernel, nics, {"eth1": reading(rx_drops=5)}, no, no, {"eth1": reading(rx_drops=7)}, no)
            == 5
        )
    assert len(caplog.records) == 2
    assert nics.received("eth1", 0) == {"rx_drops": 7}


def test_a_driver_that_refuses_does_not_cost_the_others_their_counters(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    nics, no = Nics(lambda: ["eth1", "eth2"]), OSError(5, "broken")
    with caplog.at_level(logging.WARNING, "xskd"):
        readings(
            kernel, nics, {"eth1": no, "eth2": reading(rx_drops=5)}, {"eth1": no, "eth2": reading(rx_drops=6)}
        )
    assert [message.split(": ")[0] for message in caplog.messages] == ["eth1"]
    assert nics.received("eth2", 0) == {"rx_drops": 6}
