/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0
 *
 * What the XDP program and the process that loads it agree on. Any change here raises the version: xskd
 * refuses an object of another one.
 */
#ifndef XSKD_XDP_PROG_H
#define XSKD_XDP_PROG_H

#define XSKD_PROG_ABI 1

/* Indices of the per-CPU counters in the map `verdicts`; packets. */
enum xskd_verdict {
	XSKD_REDIRECTED,        /* to the XSK of the queue the packet arrived on */
	XSKD_NO_SOCKET_PASSED,  /* that queue has no XSK: given to the kernel's stack */
	XSKD_NO_SOCKET_DROPPED, /* that queue has no XSK, and the path says drop */
	XSKD_VERDICTS
};

#endif
