"""Builds the four C modules through cffi in API mode: the compiler, not Python, knows every struct.

`forward` (xskd._forward) is the data plane with the kernel's AF_XDP definitions, and `seccomp`
(xskd._seccomp) the part of libseccomp that confines a worker; a worker loads only these. `libbpf`
(xskd._libbpf) is the part of libbpf that loads and attaches the XDP program; only a process that does
that loads it. `pcap` (xskd._pcap) is libpcap's compiler of filter expressions, for `xskd capture` only;
what it makes is run by libpcap's interpreter, one object of libpcap.a inside `forward`, since the shared
library would bring others (D-Bus) into every worker. None retypes a kernel struct or constant: what
stands in a cdef with "..." is taken from the system's headers, and what xskd itself declares is cut out
of csrc/forward.h, csrc/capture.h and bpf/xdp_prog.h.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LAYOUT = ROOT / "bpf" / "xdp_prog.h"
# Not -Werror: a newer compiler on somebody's machine must not stop an installation. The tests compile the
# same files with it.
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
# The loop is compiled for speed whatever Python itself was built with. More than -O2 does not make it any
# shorter: tests/native/test_instructions.py counts.
OPTIMISE = ["-O2", "-std=gnu11"]


def declarations(header: Path) -> str:
    """What stands between the two cffi marks of a header, without comments."""
    text = header.read_text(encoding="utf-8")
    marked = text.split("/* cffi: begin */", 1)[1].split("/* cffi: end */", 1)[0]
    return re.sub(r"/\*.*?\*/", "", marked, flags=re.DOTALL)


forward = FFI()
forward.cdef(
    """
struct xdp_desc { uint64_t addr; uint32_t len; uint32_t options; ...; };
struct sockaddr_xdp { uint16_t sxdp_family, sxdp_flags; uint32_t sxdp_ifindex, sxdp_queue_id,
                      sxdp_shared_umem_fd; ...; };
struct xdp_ring_offset { uint64_t producer, consumer, desc, flags; ...; };
struct xdp_mmap_offsets { struct xdp_ring_offset rx, tx, fr, cr; ...; };
struct xdp_umem_reg { uint64_t addr, len; uint32_t chunk_size, headroom, flags; ...; };
struct xdp_statistics { uint64_t rx_dropped, rx_invalid_descs, tx_invalid_descs, rx_ring_full,
                        rx_fill_ring_empty_descs, tx_ring_empty_descs; ...; };
static const int AF_XDP, SOL_XDP, XDP_SHARED_UMEM, XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP,
    XDP_MMAP_OFFSETS, XDP_RX_RING, XDP_TX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING,
    XDP_UMEM_COMPLETION_RING, XDP_STATISTICS, XDP_OPTIONS, XDP_MAX_TX_SKB_BUDGET, XDP_OPTIONS_ZEROCOPY,
    XDP_USE_SG, XDP_PKT_CONTD, XDP_UMEM_UNALIGNED_CHUNK_FLAG;
static const unsigned long long XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_FILL_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING;
static const int PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL;
int xskd_bind(int fd, const struct sockaddr_xdp *address);
int prctl(int option, unsigned long, unsigned long, unsigned long, unsigned long);
int xskd_drop_capabilities(void);
struct bpf_insn { unsigned short code; unsigned char jt, jf; uint32_t k; ...; };
"""
    + declarations(HERE / "forward.h")
    + declarations(HERE / "capture.h")
)
forward.set_source(
    "xskd._forward",
    """
#include <errno.h>
#include <linux/capability.h>
#include <linux/if_xdp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "capture.h"
#include "forward.h"
/* Newer than Debian 12's header; the kernel answers ENOPROTOOPT where it does not know it. */
#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9
#endif
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)
#define XDP_PKT_CONTD (1 << 0)
#endif
/* Python's socket.bind() does not know this family. 0 or -1 with errno. */
static int xskd_bind(int fd, const struct sockaddr_xdp *address)
{
	return bind(fd, (const struct sockaddr *)address, sizeof(*address));
}
/* Empty permitted, effective and inheritable sets: 0 or -1 with errno. */
static int xskd_drop_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3, .pid = 0 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };

	return (int)syscall(SYS_capset, &header, none);
}
""",
    sources=[
        f"csrc/{name}.c"
        for name in ("forward", "packets", "port", "frames", "observe", "adopt", "capture", "syscalls")
    ],
    include_dirs=[str(HERE)],
    depends=[str(p) for p in HERE.glob("*.h")],
    extra_compile_args=OPTIMISE + WARNINGS,
    extra_link_args=["-l:libpcap.a", "-Wl,--exclude-libs,libpcap.a"],
)

libbpf = FFI()
libbpf.cdef(
    """
typedef uint8_t __u8;
typedef uint16_t __u16;
typedef uint32_t __u32;
typedef unsigned long long __u64;
typedef long long __s64;
"""
    + declarations(LAYOUT)
    + """
struct bpf_object; struct bpf_program; struct bpf_map;
struct bpf_object *bpf_object__open_mem(const void *buffer, size_t size, const void *options);
int bpf_object__load(struct bpf_object *object);
void bpf_object__close(struct bpf_object *object);
struct bpf_program *bpf_object__find_program_by_name(const struct bpf_object *object, const char *name);
struct bpf_map *bpf_object__find_map_by_name(const struct bpf_object *object, const char *name);
int bpf_program__fd(const struct bpf_program *program);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, uint32_t entries);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
void *bpf_map__initial_value(struct bpf_map *map, size_t *size);
int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values, uint32_t *count,
                         const void *options);
int bpf_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count, const void *options);
int bpf_link_detach(int link);
int libbpf_num_possible_cpus(void);
int bpf_prog_get_fd_by_id(uint32_t id);
struct xskd_program_info { uint32_t id; char name[16]; uint8_t tag[8]; ...; };
struct xskd_attached { uint32_t id, drv, skb; int mode; ...; };
void xskd_libbpf_init(void);
const char *xskd_libbpf_log(void);
int xskd_link_create(int program, int ifindex, uint32_t flags);
int xskd_link_update(int link, int program);
int xskd_detach(int ifindex, uint32_t flags, int program);
int xskd_program_info_of(int fd, struct xskd_program_info *info);
int xskd_program_info(uint32_t id, struct xskd_program_info *info);
int xskd_attached_to(int ifindex, struct xskd_attached *attached);
int xskd_rules_map(void);
int xskd_map_id(int fd, uint32_t *id);
struct xskd_test { uint32_t action, duration, length, metadata; ...; };
int xskd_test_run(int program, const void *packet, uint32_t length, uint32_t ifindex, uint32_t queue,
                  int repeat, void *out, uint32_t room, struct xskd_test *result);
static const int XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE, XDP_ATTACHED_NONE, XDP_ATTACHED_DRV,
    XDP_ATTACHED_SKB, XDP_ATTACHED_HW, XDP_ATTACHED_MULTI, BPF_ANY, BPF_NOEXIST,
    XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT,
    BPF_MAP_TYPE_XSKMAP, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS,
    BPF_MAP_TYPE_DEVMAP;
"""
)
libbpf.set_source(
    "xskd._libbpf",
    (HERE / "libbpf.c").read_text(encoding="utf-8"),
    libraries=["bpf"],
    include_dirs=[str(LAYOUT.parent)],
    depends=[str(HERE / "libbpf.c"), str(LAYOUT)],
    extra_compile_args=WARNINGS,
)

seccomp = FFI()
seccomp.cdef("""
typedef void *scmp_filter_ctx;
enum scmp_compare { SCMP_CMP_MASKED_EQ, ... };
enum scmp_filter_attr { SCMP_FLTATR_API_SYSRAWRC, ... };
struct scmp_arg_cmp { unsigned int arg; enum scmp_compare op; uint64_t datum_a, datum_b; ...; };
scmp_filter_ctx seccomp_init(uint32_t default_action);
void seccomp_release(scmp_filter_ctx filter);
int seccomp_attr_set(scmp_filter_ctx filter, enum scmp_filter_attr attribute, uint32_t value);
int seccomp_syscall_resolve_name(const char *name);
int seccomp_rule_add_array(scmp_filter_ctx filter, uint32_t action, int call, unsigned int count,
                           const struct scmp_arg_cmp *arguments);
int seccomp_load(const scmp_filter_ctx filter);
static const uint32_t XSKD_ALLOW, XSKD_REFUSE;
static const int AT_EMPTY_PATH, FIONBIO, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, __NR_SCMP_ERROR;
""")
seccomp.set_source(
    "xskd._seccomp",
    """
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
/* The header makes these by macros, which a cdef cannot name. */
static const uint32_t XSKD_ALLOW = SCMP_ACT_ALLOW, XSKD_REFUSE = SCMP_ACT_ERRNO(EPERM);
""",
    libraries=["seccomp"],
    extra_compile_args=WARNINGS,
)

pcap = FFI()
pcap.cdef("""
typedef struct pcap pcap_t;
struct bpf_insn { unsigned short code; unsigned char jt, jf; uint32_t k; ...; };
struct bpf_program { unsigned int bf_len; struct bpf_insn *bf_insns; ...; };
pcap_t *pcap_open_dead(int linktype, int snaplen);
void pcap_close(pcap_t *handle);
int pcap_compile(pcap_t *handle, struct bpf_program *program, const char *text, int optimize,
                 uint32_t netmask);
void pcap_freecode(struct bpf_program *program);
char *pcap_geterr(pcap_t *handle);
static const int DLT_EN10MB;
static const uint32_t PCAP_NETMASK_UNKNOWN;
""")
pcap.set_source(
    "xskd._pcap",
    "#include <pcap/pcap.h>",
    libraries=["pcap"],
    extra_compile_args=WARNINGS,
)
