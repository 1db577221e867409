/* SPDX-License-Identifier: Apache-2.0
 *
 * The data plane's whole vocabulary: a UMEM and who owns each of its frames, a port (one XSK with its
 * four rings), a forwarder (one worker: some ports and what to do between them), and the counters that a
 * worker writes and everybody else reads.
 *
 * Python sees exactly what stands between the two cffi marks; csrc/build.py cuts it out, so a struct is
 * written down once. A counter keeps its name from here to the metric and the panel.
 *
 * Where a frame is: every frame of a UMEM is in exactly one place. `owner` has one byte per frame that
 * says who may touch it: on the free stack, held by whoever called receive or reserve, given to a port's
 * RX side (FILL ring, kernel, RX ring), given to a port's TX side (TX ring, kernel, completion ring), or
 * quarantined. Each change of place checks the byte first; a descriptor that names a frame which is not
 * the kernel's to give is counted and left alone. The kernel's FILL consumer index is published late and
 * is never used to decide who owns a frame.
 */
#ifndef XSKD_FORWARD_H
#define XSKD_FORWARD_H

#include <linux/if_xdp.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define XSKD_LAYOUT_VERSION 5   /* of everything below that two processes share */
#define XSKD_MAX_PORTS 16
#define XSKD_BURST 64           /* entries taken from one RX ring before the next port has its turn */
#define XSKD_MAX_FRAGMENTS 18   /* descriptors of one packet: the kernel's MAX_SKB_FRAGS + 1 */
#define XSKD_WRONG_ENTRIES 64   /* of a port's RX and completion rings, after which they are not believed any more */
#define XSKD_BATCHES 8          /* histogram: up to 1, 2, 4, ..., 64 packets, and more */
#define XSKD_TIMES 17           /* histogram: up to 2^10, 2^11, ..., 2^25 nanoseconds, and more */
#define XSKD_TIMES_FIRST 10     /* 2^10 ns is about a microsecond, 2^25 ns are 34 milliseconds */

/* Why a packet was not forwarded; each drop has exactly one reason. */
enum xskd_drop {
	XSKD_DROP_UNDERSIZE,    /* shorter than an Ethernet header */
	XSKD_DROP_OVERSIZE,     /* longer than the egress interface can send */
	XSKD_DROP_TX_FULL,      /* the egress TX ring stayed full for longer than tx_deadline */
	XSKD_DROP_TX_REFUSED,   /* the egress driver took the frame and refused it (EBUSY) */
	XSKD_DROP_INVALID,      /* the RX descriptor names no frame that the kernel was given */
	XSKD_DROP_FRAGMENTS,    /* of several descriptors: more than may be, or cut off */
	XSKD_DROP_NO_METADATA,  /* route: what the XDP program put in front of it did not arrive whole */
	XSKD_DROP_ABANDONED,    /* in the hands of a worker that died, or in a ring of a socket that was given up */
	XSKD_DROPS
};

/* What the kernel answered to a wakeup; a success is not counted here. */
enum xskd_wakeup_error {
	XSKD_ERROR_EAGAIN,     /* its budget for one call is used up, or no room to send: try again */
	XSKD_ERROR_EBUSY,      /* the driver refused one frame and completed it */
	XSKD_ERROR_ENOBUFS,    /* out of memory or no TX queue for now */
	XSKD_ERROR_ENETDOWN,   /* the interface is down */
	XSKD_ERROR_ENXIO,      /* the socket is no longer bound: its device is gone */
	XSKD_ERROR_OTHER,      /* anything else; the loop stops with this errno */
	XSKD_WAKEUP_ERRORS
};

/* Why the kernel was called: sendto() for TX, recvfrom() for FILL, poll() for whatever its flags ask. */
enum xskd_wakeup {
	XSKD_WAKEUP_NEW,        /* sendto: new packets on TX */
	XSKD_WAKEUP_AGAIN,      /* sendto: the call before it sent only a part */
	XSKD_WAKEUP_LEFT,       /* sendto: packets that an earlier turn could not get sent */
	XSKD_WAKEUP_REFILLED,   /* recvfrom: new frames on FILL */
	XSKD_WAKEUP_DRY,        /* recvfrom: nothing comes, and the driver still asks */
	XSKD_WAKEUP_SLEEP,      /* poll: about to sleep, and the driver asks */
	XSKD_WAKEUPS
};

enum xskd_direction { XSKD_DIRECTION_TX, XSKD_DIRECTION_RX, XSKD_DIRECTIONS };

/* What the loop spends its time on; every moment of a run is in exactly one. */
enum xskd_regime {
	XSKD_REGIME_WORKING,    /* turns that moved frames, without the calls in them */
	XSKD_REGIME_SPINNING,   /* turns that found nothing, likewise */
	XSKD_REGIME_SLEEPING,   /* in poll() */
	XSKD_REGIME_WAKING,     /* in sendto() and recvfrom(): those that were timed, times XSKD_SAMPLE */
	XSKD_REGIMES
};

enum xskd_cpu { XSKD_CPU_USER, XSKD_CPU_SYSTEM, XSKD_CPUS };
enum xskd_switch { XSKD_SWITCH_VOLUNTARY, XSKD_SWITCH_INVOLUNTARY, XSKD_SWITCHES };
enum xskd_fault { XSKD_FAULT_MAJOR, XSKD_FAULT_MINOR, XSKD_FAULTS };

enum xskd_ring_name { XSKD_FILL, XSKD_RX, XSKD_TX, XSKD_COMPLETION, XSKD_RINGS };

enum xskd_place {
	XSKD_PLACE_FREE,        /* on the free stack */
	XSKD_PLACE_FILL,        /* in a FILL ring */
	XSKD_PLACE_RX,          /* in an RX ring */
	XSKD_PLACE_HELD,        /* in the hands of whoever called receive or reserve */
	XSKD_PLACE_TX,          /* in a TX ring */
	XSKD_PLACE_COMPLETION,  /* in a completion ring */
	XSKD_PLACE_KERNEL,      /* inside the kernel or the NIC, in neither ring */
	XSKD_PLACE_QUARANTINED, /* owner uncertain: never used again */
	XSKD_PLACES
};

enum xskd_action {
	XSKD_UNCHANGED,         /* connect: a bump in the wire */
	XSKD_SWAP_MACS,         /* reflect: source and destination Ethernet address change places */
	XSKD_ROUTE,             /* route: where it says in front of each packet, with one hop less to go */
};

enum xskd_poll { XSKD_POLL_ADAPTIVE, XSKD_POLL_BUSY, XSKD_POLL_WAKEUP };

/* Counters of one port: written by one worker, read by anyone at any time. Packets, bytes or calls. */
struct xskd_port_counters {
	uint64_t rx_packets;    /* taken from the RX ring */
	uint64_t rx_bytes;
	uint64_t tx_packets;    /* submitted on the TX ring */
	uint64_t tx_bytes;
	uint64_t tx_frames;     /* of those packets: one each, with multi_buffer perhaps more */
	uint64_t tx_completed;  /* frames come back through the completion ring */
	uint64_t drops[XSKD_DROPS];
	uint64_t rx_batches[XSKD_BATCHES];      /* bursts taken from RX, by how many packets they had */
	uint64_t tx_batches[XSKD_BATCHES];      /* bursts put on TX, likewise */
	uint64_t wakeups[XSKD_WAKEUPS];
	uint64_t wakeups_skipped[XSKD_DIRECTIONS];      /* something new, but the kernel did not ask for a call */
	uint64_t wakeup_errors[XSKD_WAKEUP_ERRORS];
	uint64_t fill_starved;  /* turns that found FILL empty and no free frame to put there */
	uint64_t tx_blocked;    /* turns that found packets in RX and no room on the egress TX ring */
	uint64_t completion_invalid;    /* completion entries that name no frame of this port's TX side */
	uint64_t ring_full[XSKD_RINGS];         /* times that a look found it full, and the look before not */
	uint64_t ring_empty[XSKD_RINGS];        /* times that a look found it empty, and the look before not */
	uint64_t ring_corrupt[XSKD_RINGS];      /* times that it could not be believed any more: that ends a worker */
	/* Samples: one wakeup and one packet in so many is timed. */
	uint64_t wakeup_tx_times[XSKD_TIMES];   /* sendto() calls by how long they took */
	uint64_t wakeup_rx_times[XSKD_TIMES];   /* recvfrom() calls, likewise */
	uint64_t wakeup_ns[XSKD_DIRECTIONS];    /* all of those together */
	uint64_t latency[XSKD_TIMES];           /* packets that came in here, by their time in the forwarder */
	uint64_t latency_ns;                    /* all of those together */
	uint64_t rx_rest;       /* 1: what comes next on RX is the rest of a packet that was dropped */
	/* Gauges, refreshed by xskd_forward_publish. */
	uint64_t ring_entries[XSKD_RINGS];
	uint64_t ring_high_water[XSKD_RINGS];   /* the most since a reader last asked for a new mark */
};

/* One worker's shared page. `sequence` is odd while the gauges are being rewritten. The worker is the only
 * writer of all words but one: `marks_wanted` is a reader's. */
struct xskd_counters {
	uint64_t layout_version;
	uint64_t sequence;
	uint64_t heartbeat_ns;  /* CLOCK_MONOTONIC at the end of the last turn */
	uint64_t turns;         /* of the loop */
	uint64_t turns_idle;    /* of them, with nothing to do */
	uint64_t sleeps;        /* poll() calls that were allowed to sleep */
	uint64_t frames;        /* in the UMEM */
	uint64_t frames_in[XSKD_PLACES];
	uint64_t frames_unaccounted;    /* frames minus the sum over all places: anything but 0 is a bug */
	uint64_t yielded;       /* 1: the worker has made its last turn, and a successor may make the next one */
	uint64_t regimes_ns[XSKD_REGIMES];
	uint64_t cpu_ns[XSKD_CPUS];             /* what getrusage() says, over all processes of this place */
	uint64_t context_switches[XSKD_SWITCHES];
	uint64_t page_faults[XSKD_FAULTS];
	uint64_t marks_wanted;  /* a reader adds 1: it has read the high-water marks and wants new ones */
	uint64_t marks_begun;   /* the worker has begun those */
	uint64_t intent;        /* what the worker is doing to a batch of frames, for a successor: frames.h */
	struct xskd_port_counters ports[XSKD_MAX_PORTS];
};

/* One ring as seen from our side; what it means is in ring.h. */
struct xskd_ring {
	uint32_t *producer;
	uint32_t *consumer;
	uint32_t *flags;        /* NULL on kernels without need_wakeup */
	void *entries;
	uint32_t size;          /* entries, a power of two */
	uint32_t own;           /* our index; the other side's is read from the ring */
};

/* A range of ring levels: `from`, and `span` more. */
struct xskd_quiet { uint32_t from, span; };

struct xskd_umem {
	uint8_t *area;
	uint8_t *owner;         /* one byte per frame, see OWNER_ in frames.h */
	uint64_t *intent;       /* never NULL: in the page that outlives the worker, or private */
	uint32_t *free;         /* stack of frame numbers, room for all */
	uint32_t free_count;
	uint32_t frames;
	uint32_t frame_size;    /* bytes, 1 << frame_shift */
	uint32_t frame_shift;   /* 0: registered as unaligned chunks, of any size; not for the loop */
	uint32_t quarantined;
	uint32_t held;
};

struct xskd_port {
	struct xskd_ring rings[XSKD_RINGS];
	struct xskd_umem *umem;
	struct xskd_port_counters *counters;
	int fd;
	uint32_t index;         /* in the forwarder, and in the owner bytes: 0 to XSKD_MAX_PORTS - 1 */
	uint32_t max_length;    /* longest packet this interface may send, without FCS, in bytes */
	uint32_t rx_side;       /* frames given to FILL and not yet taken from RX */
	uint32_t tx_side;       /* frames submitted on TX and not yet completed */
	uint32_t refilled;      /* frames posted on FILL since the kernel was last asked to look */
	uint32_t submitted;     /* packets put on TX, likewise */
	/* What is watched on the way, see observe.h. */
	struct xskd_quiet quiet[XSKD_RINGS];    /* levels that are no news */
	uint32_t highest[XSKD_RINGS];   /* entries, since the last publish */
	uint32_t until_timed;   /* wakeups before the next one that is timed */
	uint32_t until_sample;  /* bursts until the next packet that is timed; 0: there is one in RX */
	uint32_t sample;        /* its index on RX, plus 1 */
	uint64_t sample_since_ns;
	uint64_t waking_ns;     /* in wakeups since the last publish, as far as they were timed */
	uint64_t blocked_since_ns;      /* TX without room since then; 0: it has room */
	uint64_t unfinished_since_ns;   /* the beginning of a packet waits in RX for its end since then; 0: none */
	uint64_t ask_at_ns;     /* the interface is down, and is not told to send before; 0: at once */
	uint64_t pause_ns;      /* between the last two times that it was */
	uint32_t down;          /* 1: the last wakeup said so */
	uint32_t multi_buffer;  /* packets may have several descriptors: bound with XDP_USE_SG */
	uint32_t tx_shows_late; /* what a wakeup sent shows on TX only when the kernel looks for more */
	uint32_t poll_sends;    /* poll() sends what is on TX, as copy mode has it, and says nothing of it */
	uint32_t wrong;         /* entries of RX and completion so far that no kernel should give */
	uint32_t corrupt;       /* enum xskd_ring_name: which one, if `error` is EBADMSG */
	int error;              /* errno that ended this port, 0 while it works; EBADMSG: a ring is corrupt */
};

struct xskd_capture;

struct xskd_forward {
	struct xskd_port *ports[XSKD_MAX_PORTS];
	/* What arrives on port i leaves by port egress[i]. With XSKD_ROUTE each packet has its own, and this is
	 * the one that port i's next packet could not have in its last turn, or XSKD_MAX_PORTS: it waits for none. */
	uint32_t egress[XSKD_MAX_PORTS];
	uint32_t source[XSKD_MAX_PORTS];        /* XSKD_ROUTE: whose packet port i was the last to get */
	uint32_t port_count;
	uint32_t action;        /* enum xskd_action */
	uint32_t poll;          /* enum xskd_poll */
	int control_fd;         /* wakes a sleeping loop; -1: none */
	uint32_t control_ready; /* there is something to read on it: the run ended early */
	uint64_t now_ns;        /* CLOCK_MONOTONIC of this turn */
	uint64_t looked_ns;     /* of the look before: what this turn finds on RX has come since */
	uint64_t spent_ns[XSKD_REGIMES];        /* since the last publish, waking not yet taken out */
	uint64_t used[XSKD_CPUS + XSKD_SWITCHES + XSKD_FAULTS]; /* by this process, as last published */
	uint64_t busy_until_ns; /* adaptive: do not sleep before */
	struct xskd_counters *counters;
	struct xskd_capture *capture;   /* who wants copies of packets (capture.h); NULL: nobody */
};

/* What a successor found in its predecessor's rings. */
struct xskd_adoption {
	uint32_t waiting;       /* packets on RX */
	uint32_t unsent;        /* packets on TX that the kernel has not looked at yet */
	uint32_t skipped;       /* entries of RX and completion that were worked off but not released */
	uint32_t undone;        /* packets of a batch that was never submitted: lost, and counted as abandoned (of
				 * xskd_transmit: frames, not counted) */
	uint32_t freed;         /* frames in the predecessor's hands: held, or on their way back to FILL */
	uint32_t quarantined;   /* frames whose place is in doubt, by this adoption */
};

/* Frames. The counts are of frames; nothing here blocks or calls the kernel. */
void xskd_umem_reset(struct xskd_umem *umem);
uint32_t xskd_umem_take(struct xskd_umem *umem, struct xdp_desc *held, uint32_t wanted);
uint32_t xskd_umem_give(struct xskd_umem *umem, const struct xdp_desc *held, uint32_t n);

/* One port, batch-wise. All return the number of frames moved. With multi_buffer only whole packets are: no
 * packet is received unless all of it finds room in `held`, so `wanted` is at least XSKD_MAX_FRAGMENTS, and
 * none is transmitted unless all of it stands there. */
uint32_t xskd_receive(struct xskd_port *port, struct xdp_desc *held, uint32_t wanted);
uint32_t xskd_transmit(struct xskd_port *port, const struct xdp_desc *held, uint32_t n);
uint32_t xskd_complete(struct xskd_port *port);
uint32_t xskd_refill(struct xskd_port *port);
/* Wakeups return 0 or the errno that ended the port; everything temporary is counted and 0. */
int xskd_wakeup_tx(struct xskd_port *port);
int xskd_wakeup_rx(struct xskd_port *port);

/* The loop. Returns after at most duration_ns, earlier when control_fd is readable: 0, or the errno of a
 * port that died (port->error). After EBADMSG its rings must not be used again, nor be adopted. */
int xskd_forward_run(struct xskd_forward *forward, uint64_t duration_ns);
uint32_t xskd_forward_turn(struct xskd_forward *forward);
/* Count where every frame is and publish it with the ring levels. Returns frames_unaccounted. */
int64_t xskd_forward_publish(struct xskd_forward *forward);
/* A reader has taken the high-water marks: the worker begins new ones within a slice. */
void xskd_new_marks(struct xskd_counters *counters);
/* Compare the owner byte of every frame with every ring entry, O(frames). Returns the number of
 * contradictions; 0 is the only good answer. For quiet moments: start, stop, tests. */
uint32_t xskd_forward_audit(struct xskd_forward *forward);
/* Take over the live rings, owner bytes and counters of a worker that has ended, however it ended: instead of
 * xskd_umem_reset, before anything else is done with them. Everything must be set but what only counts or
 * stacks frames; the rings' `own` are read from the rings. 0, and `report` says what was found; EINVAL: these
 * are not ports 0, 1, ... of one UMEM; EBADMSG: the page or an index makes no sense. Nothing shared has been
 * changed then, and the rings must not be used. */
int xskd_forward_adopt(struct xskd_forward *forward, struct xskd_adoption *report);
/* From one worker to the next, without a word of the supervisor in between: everything the first one did is
 * done when the second one sees it. Adopting ends it. */
void xskd_yield(struct xskd_counters *counters);
int xskd_yielded(const struct xskd_counters *counters);
/* cffi: end */

#endif
