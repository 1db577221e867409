/* SPDX-License-Identifier: Apache-2.0
 *
 * Routing, as far as the worker does it: read what the XDP program learned from the kernel's tables, and mend a
 * packet's headers as a router has to.
 *
 * The program puts a struct xskd_route_meta directly in front of the packet. Not every driver carries it into
 * the frame, and a frame has a history: what stands there may be torn, may be an older packet's, may be
 * anything. So nothing of it is believed unless its check fits, which covers the packet's length and
 * destination too; and it is read once: whoever is done with a packet, in whatever way, forgets it. A packet
 * without it is dropped and counted. It must never be guessed where a packet goes, and a packet must never leave
 * with a hop limit that was not decremented, or with 0.
 *
 * Routed packets have no VLAN tag: a tagged one belongs to another interface, and the program leaves it to the
 * kernel.
 */
#ifndef XSKD_ROUTE_H
#define XSKD_ROUTE_H

#include <endian.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../bpf/xdp_prog.h"

#define ROUTE_META sizeof(struct xskd_route_meta)

/* Where the fields of interest are in a packet, in bytes, and the least that a packet has. */
enum {
	ROUTE_TTL4 = ETH_HLEN + 8, ROUTE_CHECKSUM4 = ETH_HLEN + 10, ROUTE_DESTINATION4 = ETH_HLEN + 16,
	ROUTE_LEAST4 = ETH_HLEN + 20,
	ROUTE_HOP_LIMIT6 = ETH_HLEN + 7, ROUTE_DESTINATION6 = ETH_HLEN + 36, ROUTE_LEAST6 = ETH_HLEN + 40,
};

static inline uint32_t route_word(const uint8_t *at)
{
	uint32_t word;

	memcpy(&word, at, sizeof(word));        /* it may stand anywhere */
	return word;
}

/* The check that belongs to what stands in front of a packet. */
static inline uint32_t route_check(const uint8_t *packet, uint32_t length, uint32_t destination)
{
	const uint8_t *meta = packet - ROUTE_META;

	return XSKD_META ^ route_word(meta + 4) ^ route_word(meta + 8) ^ route_word(meta + 12) ^
	       route_word(meta + 16) ^ length ^ destination;
}

/* By which port a packet leaves that lies inside its frame, `room` bytes from the frame's start: below `ports`;
 * `none`: what stands in front of it does not say. */
static inline uint32_t route_egress(const uint8_t *packet, uint64_t room, uint32_t length, uint32_t ports,
				    uint32_t none)
{
	struct xskd_route_meta meta;
	bool four;

	if (room < ROUTE_META)
		return none;
	memcpy(&meta, packet - ROUTE_META, ROUTE_META);
	four = meta.family == 4;
	if (!four && meta.family != 6)
		return none;
	if (length < (four ? ROUTE_LEAST4 : ROUTE_LEAST6) || packet[four ? ROUTE_TTL4 : ROUTE_HOP_LIMIT6] <= 1)
		return none;
	if (meta.check != route_check(packet, length, route_word(packet + (four ? ROUTE_DESTINATION4 :
									  ROUTE_DESTINATION6))))
		return none;
	return meta.egress < ports ? meta.egress : none;
}

/* What stands in front of a packet, if there is room for anything, is never believed again: no check makes good
 * that it is of no family. */
static inline void route_forget(uint8_t *packet, uint64_t room)
{
	if (room >= ROUTE_META)
		memset(packet - ROUTE_META, 0, offsetof(struct xskd_route_meta, destination));
}

/* One hop: TTL or hop limit, checksum, Ethernet addresses, by what route_egress() has found good. The checksum is
 * corrected, not computed (RFC 1624): one that was wrong stays wrong. Sums in one's complement come out the same
 * in either byte order, and of the two zeros only the one that a recomputation gives can come out. */
static inline void route_mend(uint8_t *packet)
{
	struct xskd_route_meta meta;

	memcpy(&meta, packet - ROUTE_META, ROUTE_META);
	if (meta.family == 4) {
		uint16_t checksum;
		uint32_t sum;

		memcpy(&checksum, packet + ROUTE_CHECKSUM4, sizeof(checksum));
		sum = checksum + htobe16(0x0100);
		checksum = (uint16_t)(sum + (sum >= 0xffff));
		memcpy(packet + ROUTE_CHECKSUM4, &checksum, sizeof(checksum));
		packet[ROUTE_TTL4]--;
	} else {
		packet[ROUTE_HOP_LIMIT6]--;
	}
	memcpy(packet, meta.destination, sizeof(meta.destination));
	memcpy(packet + ETH_ALEN, meta.source, sizeof(meta.source));
}

#endif
