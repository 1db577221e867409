/* SPDX-License-Identifier: Apache-2.0
 *
 * IP packets for a path that routes, and the metadata that the XDP program would put in front of them. A packet
 * carries its number, the port it came by and the one it is to leave by, so that the wire can say what it must
 * look like. All packets of one family and egress go to the same address, and most have the same length: what
 * an older packet left in a frame fits them well.
 */
#ifndef ROUTED_H
#define ROUTED_H

#include <linux/types.h>
#include <string.h>

#include "../../bpf/xdp_prog.h"
#include "fake_kernel.h"

#define META sizeof(struct xskd_route_meta)
#define ETHERNET 14

struct routed {
	uint32_t number, from, egress, family;
};

enum { ROUTED_BY_NUMBER = -1, ROUTED_NOWHERE = -2 };
static int routed_to = ROUTED_BY_NUMBER;        /* where all packets go that arrive now */

/* In runs of different lengths, but not to any port; one in sixteen has no metadata. */
static inline uint32_t routed_egress(uint32_t number, uint32_t ports)
{
	return (number >> (number / 64 % 4)) * 5 % 7 % ports;
}

static inline bool routed_lacks(uint32_t number)
{
	return number % 16 == 5;
}

static inline uint32_t routed_word(const uint8_t *at)
{
	uint32_t word;

	memcpy(&word, at, 4);
	return word;
}

/* The header checksum as RFC 1071 has it: all of it, word by word. */
static inline uint16_t routed_sum(const uint8_t *header)
{
	uint32_t sum = 0;

	for (int i = 0; i < 20; i += 2)
		sum += i == 10 ? 0u : (uint32_t)(header[i] << 8 | header[i + 1]);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static inline void routed_write4(const struct routed *routed, uint32_t length, uint32_t hops, uint8_t *ip)
{
	const uint32_t bytes = length - ETHERNET;
	uint16_t sum;

	memset(ip, 0, 20);
	ip[0] = 0x45;
	ip[1] = (uint8_t)routed->egress;
	ip[2] = (uint8_t)(bytes >> 8);
	ip[3] = (uint8_t)bytes;
	ip[5] = (uint8_t)routed->from;
	ip[8] = (uint8_t)(2 + routed->number % 254 - hops);
	ip[9] = 17;
	memcpy(ip + 12, &routed->number, 4);
	ip[16] = 10;
	ip[19] = (uint8_t)(1 + routed->egress);
	sum = routed_sum(ip);
	ip[10] = (uint8_t)(sum >> 8);
	ip[11] = (uint8_t)sum;
}

static inline void routed_write6(const struct routed *routed, uint32_t length, uint32_t hops, uint8_t *ip)
{
	const uint32_t bytes = length - ETHERNET - 40;

	memset(ip, 0, 40);
	ip[0] = 0x60;
	ip[2] = (uint8_t)routed->egress;
	ip[3] = (uint8_t)routed->from;
	ip[4] = (uint8_t)(bytes >> 8);
	ip[5] = (uint8_t)bytes;
	ip[6] = 17;
	ip[7] = (uint8_t)(2 + routed->number % 254 - hops);
	memcpy(ip + 20, &routed->number, 4);
	ip[24] = 0xfd;
	ip[39] = (uint8_t)(1 + routed->egress);
}

/* A packet after so many hops: 0 or 1. */
static inline void routed_write(const struct routed *routed, uint32_t length, uint32_t hops, uint8_t *packet)
{
	const uint32_t headers = ETHERNET + (routed->family == 4 ? 20 : 40);
	const uint8_t arrives[12] = { 2, 0, 0, 0, 1, (uint8_t)routed->from, 2, 0, 0, 0, 2, 0 };
	const uint8_t leaves[12] = { 2, 0, 0, 0, 3, (uint8_t)routed->egress, 2, 0, 0, 0, 4, (uint8_t)routed->egress };

	memcpy(packet, hops ? leaves : arrives, 12);
	packet[12] = routed->family == 4 ? 0x08 : 0x86;
	packet[13] = routed->family == 4 ? 0x00 : 0xdd;
	(routed->family == 4 ? routed_write4 : routed_write6)(routed, length, hops, packet + ETHERNET);
	for (uint32_t i = headers; i < length; i++)
		packet[i] = fake_byte(routed->number, i);
}

/* What a packet says of itself, at any hop. */
static inline void routed_read(const uint8_t *packet, struct routed *routed)
{
	const uint8_t *ip = packet + ETHERNET;

	routed->family = ip[0] >> 4;
	routed->egress = ip[routed->family == 4 ? 1 : 2];
	routed->from = ip[routed->family == 4 ? 5 : 3];
	routed->number = routed_word(ip + (routed->family == 4 ? 12 : 20));
}

/* As the XDP program does it, but the egress may be any. */
static inline void routed_meta(uint8_t *packet, uint32_t length, uint32_t family, uint32_t egress)
{
	struct xskd_route_meta meta = {
		.egress = (uint16_t)egress, .family = (uint16_t)family,
		.destination = { 2, 0, 0, 0, 3, (uint8_t)egress }, .source = { 2, 0, 0, 0, 4, (uint8_t)egress },
	};
	uint8_t *at = packet - META;

	meta.check = XSKD_META ^ length ^ routed_word(packet + (family == 4 ? 30 : 50));
	memcpy(at, &meta, META);
	for (size_t i = 4; i < META; i += 4)
		meta.check ^= routed_word(at + i);
	memcpy(at, &meta.check, 4);
}

/* What is too short for IP arrives as it is, with nothing in front of it. */
static inline void routed_arrival(struct fake_port *port, uint32_t number, uint8_t *packet, uint32_t length)
{
	const uint32_t ports = port->fake->forward.port_count;
	const struct routed routed = {
		.number = number, .from = port->port.index, .family = length < 54 || number % 3 ? 4 : 6,
		.egress = routed_to >= 0 ? (uint32_t)routed_to : routed_egress(number, ports),
	};

	if (length < 34)
		return;
	routed_write(&routed, length, 0, packet);
	if (routed_to == ROUTED_NOWHERE || (routed_to == ROUTED_BY_NUMBER && routed_lacks(number)))
		port->fake->unrouted++;
	else
		routed_meta(packet, length, routed.family, routed.egress);
}

#endif
