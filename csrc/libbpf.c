/* SPDX-License-Identifier: Apache-2.0
 *
 * What Python cannot say to libbpf directly: option structs, a log callback (a C one, because a hardened
 * unit forbids the executable memory a Python callback needs), and bpf_link for XDP with explicit flags.
 * Results are a descriptor, 0, or a negative errno.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/if_link.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "xdp_prog.h"

#define XSKD_LOG_SIZE 8192

struct xskd_program_info { uint32_t id; char name[16]; uint8_t tag[BPF_TAG_SIZE]; };
/* id is the program that sees packets first; drv and skb are those of the two modes, 0 where there is none. */
struct xskd_attached { uint32_t id, drv, skb; int mode; };

static char log_text[XSKD_LOG_SIZE];
static size_t log_used;

static int keep_log(enum libbpf_print_level level, const char *format, va_list args)
{
	int n;

	if (level > LIBBPF_WARN || log_used >= sizeof(log_text) - 1)
		return 0;
	n = vsnprintf(log_text + log_used, sizeof(log_text) - log_used, format, args);
	if (n > 0)
		log_used += (size_t)n < sizeof(log_text) - log_used ? (size_t)n
								      : sizeof(log_text) - log_used - 1;
	return n;
}

static void xskd_libbpf_init(void)
{
	libbpf_set_print(keep_log);
}

/* Warnings since the last call. */
static const char *xskd_libbpf_log(void)
{
	log_text[log_used] = 0;
	log_used = 0;
	return log_text;
}

static int xskd_link_create(int program, int ifindex, uint32_t flags)
{
	LIBBPF_OPTS(bpf_link_create_opts, options, .flags = flags);
	int fd = bpf_link_create(program, ifindex, BPF_XDP, &options);

	return fd < 0 ? -errno : fd;
}

/* Puts another program behind a link, in one step: every packet meets the old one or the new one. */
static int xskd_link_update(int link, int program)
{
	return bpf_link_update(link, program, NULL) ? -errno : 0;
}

/* Detaches this very program, or none: EEXIST if another is attached, EBUSY if a bpf_link holds it. */
static int xskd_detach(int ifindex, uint32_t flags, int program)
{
	LIBBPF_OPTS(bpf_xdp_attach_opts, options, .old_prog_fd = program);

	return bpf_xdp_detach(ifindex, flags | XDP_FLAGS_REPLACE, &options);
}

static int xskd_program_info_of(int fd, struct xskd_program_info *info)
{
	struct bpf_prog_info raw = { 0 };
	uint32_t size = sizeof(raw);

	if (bpf_obj_get_info_by_fd(fd, &raw, &size))
		return -errno;
	info->id = raw.id;
	memcpy(info->name, raw.name, sizeof(info->name));
	info->name[sizeof(info->name) - 1] = 0;
	memcpy(info->tag, raw.tag, sizeof(info->tag));
	return 0;
}

/* Needs CAP_SYS_ADMIN, as everything does that goes by an id. */
static int xskd_program_info(uint32_t id, struct xskd_program_info *info)
{
	int fd = bpf_prog_get_fd_by_id(id), result;

	if (fd < 0)
		return -errno;
	result = xskd_program_info_of(fd, info);
	close(fd);
	return result;
}

static int xskd_attached_to(int ifindex, struct xskd_attached *attached)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, options);
	int error = bpf_xdp_query(ifindex, 0, &options);

	attached->id = options.prog_id ? options.prog_id : options.drv_prog_id ? options.drv_prog_id
									      : options.skb_prog_id;
	attached->drv = options.drv_prog_id;
	attached->skb = options.skb_prog_id;
	attached->mode = options.attach_mode;
	return error;
}

/* An inner map for `rules`: all of an interface's rules, 3 MB. */
static int xskd_rules_map(void)
{
	int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, "xskd_rules", sizeof(__u32), sizeof(struct xskd_rules), 1, NULL);

	return fd < 0 ? -errno : fd;
}

/* The number by which a map of maps names the one in its slot. */
static int xskd_map_id(int fd, uint32_t *id)
{
	struct bpf_map_info info = { 0 };
	uint32_t size = sizeof(info);

	if (bpf_obj_get_info_by_fd(fd, &info, &size))
		return -errno;
	*id = info.id;
	return 0;
}

/* What the program made of a packet: duration is in ns and the mean of all repetitions; the packet afterwards
 * is the last `length` bytes of what was written to `out`, with `metadata` bytes in front of it. */
struct xskd_test { uint32_t action, duration, length, metadata; };

/* Runs the program on a packet that arrives nowhere; ifindex 0 is this namespace's loopback. */
static int xskd_test_run(int program, const void *packet, uint32_t length, uint32_t ifindex, uint32_t queue,
			 int repeat, void *out, uint32_t room, struct xskd_test *result)
{
	struct xdp_md context = { .data_end = length, .ingress_ifindex = ifindex, .rx_queue_index = queue };
	LIBBPF_OPTS(bpf_test_run_opts, options,
		.data_in = packet, .data_size_in = length, .data_out = out, .data_size_out = room,
		.ctx_in = &context, .ctx_size_in = sizeof(context),
		.ctx_out = &context, .ctx_size_out = sizeof(context), .repeat = repeat);

	if (bpf_prog_test_run_opts(program, &options))
		return -errno;
	*result = (struct xskd_test){
		.action = options.retval, .duration = options.duration,
		.length = options.data_size_out - context.data, .metadata = context.data,
	};
	return 0;
}
