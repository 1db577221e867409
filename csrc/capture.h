/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies of packets for whoever wants to look: from one worker, through memory shared with one reader, into a
 * pcapng file. The rule is that traffic never waits for it. A copy that finds no room is lost and counted.
 *
 * The ring is bytes: a worker writes records at `producer`, a reader takes them at `consumer`; both only grow,
 * and a byte's place is its number modulo the size. The reader belongs to a member of a group, whom a worker
 * must not trust: everything shared may hold anything at any time. So a worker keeps the size and its own index
 * to itself, reads nothing but `consumer`, and takes a difference that cannot be for a full ring. The reader
 * does not trust the worker either, which reads what strangers send.
 *
 * Filters are libpcap's: a program is compiled by the reader, and run here by libpcap's own interpreter.
 */
#ifndef XSKD_CAPTURE_H
#define XSKD_CAPTURE_H

#include <stdint.h>
#include <sys/types.h>

#include <pcap/bpf.h>   /* needs the one before */

#include "forward.h"

/* cffi: begin */
#define XSKD_CAPTURE_LAYOUT 1           /* version of all below that is shared */
#define XSKD_CAPTURE_HEADER 4096        /* bytes in front of the ring's own */
#define XSKD_CAPTURE_MAX_FILTER 1024    /* instructions */
#define XSKD_CAPTURE_MAX_LENGTH 65535   /* bytes of one packet */

enum xskd_way { XSKD_IN, XSKD_OUT, XSKD_WAYS };

/* Packets of one port. Each that goes a wanted direction is seen, and then one of the others. */
struct xskd_capture_counters {
	uint64_t seen;
	uint64_t copied;
	uint64_t lost;          /* no room: the copy, never the packet */
	uint64_t refused;       /* by the filter */
};

/* What is shared. The indices have a cache line each. */
struct xskd_capture_ring {
	uint64_t layout_version;
	uint64_t unused[7];
	uint64_t producer;      /* bytes written, ever */
	uint64_t unused_too[7];
	uint64_t consumer;      /* bytes taken, ever */
	uint64_t unused_again[7];
	struct xskd_capture_counters ports[XSKD_MAX_PORTS];
};

/* In front of each packet in the ring. A record takes a multiple of 8 bytes. */
struct xskd_capture_record {
	uint64_t time_ns;       /* CLOCK_REALTIME; one for all packets of a burst */
	uint32_t port;
	uint32_t direction;     /* enum xskd_way */
	uint32_t original;      /* the packet's length, bytes */
	uint32_t kept;          /* of it in the ring, from the start */
};

/* The worker's side. */
struct xskd_capture {
	struct xskd_capture_ring *ring;
	uint64_t size;          /* of the ring without its header, bytes, a power of two */
	uint64_t producer;
	uint32_t directions;    /* a bit for each that is wanted */
	uint32_t snaplen;       /* most bytes of a packet that are kept */
	uint32_t filter_length; /* instructions; 0: everything is wanted */
	struct bpf_insn filter[XSKD_CAPTURE_MAX_FILTER];
};

/* The reader's side of one ring. */
struct xskd_capture_reader {
	struct xskd_capture_ring *ring;
	uint64_t size;
	uint64_t consumer;
	uint64_t end;           /* producer, when the present round began */
	uint32_t ports;
	uint32_t interface;     /* of port 0 in the file; the others follow */
	uint32_t has_next;
	struct xskd_capture_record next;
};

/* May a worker run this program: does it end, and stay inside of packet and memory, whatever the packet? */
int xskd_capture_filter_ok(const struct bpf_insn *filter, uint32_t length);
/* Begin, or go on where another worker stopped, in `bytes` of memory. 0, or EINVAL: of another size or layout. */
int xskd_capture_open(struct xskd_capture *capture, struct xskd_capture_ring *ring, uint64_t bytes);
/* The same for a reader. */
int xskd_capture_reader_open(struct xskd_capture_reader *reader, struct xskd_capture_ring *ring, uint64_t bytes);
/* Take what all rings hold now, oldest first, as pcapng blocks: at most `room` bytes and *packets packets, of
 * which there were so many. Returns the bytes; -1: a ring contradicts itself. */
int64_t xskd_capture_read(struct xskd_capture_reader *readers, uint32_t count, uint8_t *blocks, uint64_t room,
			  uint64_t *packets);
/* cffi: end */

/* Copy the packets in n descriptors of a port's RX ring (in) or TX ring (out), which begin at `offset` from our
 * index; of a packet of several descriptors, one copy. */
void xskd_capture_burst(struct xskd_capture *capture, const struct xskd_port *port, enum xskd_ring_name name,
			uint32_t offset, uint32_t n);

#endif
