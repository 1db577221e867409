/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts of observe.h that are not done for every burst.
 */
#include "observe.h"

#include "syscalls.h"

/* Empty and full are news once, and so is that it is no longer so; in between is only what is higher than
 * the mark. More than fits is always news, and the last. */
void __attribute__((noinline)) observe_news(struct xskd_port *port, enum xskd_ring_name name, uint32_t level)
{
	struct xskd_quiet *quiet = &port->quiet[name];
	const uint32_t size = port->rings[name].size;

	if (level > size) {
		frames_distrust(port, name);
		return;
	}
	if (level > port->highest[name])
		port->highest[name] = level;
	if (level == 0 || level == size) {
		count(level ? &port->counters->ring_full[name] : &port->counters->ring_empty[name], 1);
		*quiet = (struct xskd_quiet){ .from = level, .span = 0 };
	} else {
		*quiet = (struct xskd_quiet){ .from = 1, .span = at_most(port->highest[name], size - 1) - 1 };
	}
}

/* The newest packet on RX: it came after `since_ns`, the look that did not find it. How long it has waited
 * before that is not known, so its time is at most one turn too long, and never too short. */
void __attribute__((cold)) observe_sample(struct xskd_port *port, uint64_t since_ns)
{
	const struct xskd_ring *rx = &port->rings[XSKD_RX];

	port->sample = rx->own + ring_used_by_consumer(rx);
	port->sample_since_ns = since_ns;
}

void __attribute__((cold)) observe_sent(struct xskd_port *port)
{
	uint64_t ns;

	if (port->sample_since_ns && (int32_t)(port->rings[XSKD_RX].own - port->sample) < 0)
		return;         /* it still waits in RX */
	port->until_sample = XSKD_SAMPLE;
	if (port->sample_since_ns == 0)
		return;         /* there is none, or it came before the first turn of this process */
	ns = xskd_sys_now_ns() - port->sample_since_ns;
	count_time(port->counters->latency, ns);
	count(&port->counters->latency_ns, ns);
}

int __attribute__((cold)) observe_wakeup(struct xskd_port *port, enum xskd_direction direction, int (*call)(int fd))
{
	struct xskd_port_counters *counters = port->counters;
	uint64_t began, ns;
	int error;

	port->until_timed = XSKD_SAMPLE - 1;
	began = xskd_sys_now_ns();
	error = call(port->fd);
	ns = xskd_sys_now_ns() - began;
	count_time(direction == XSKD_DIRECTION_TX ? counters->wakeup_tx_times : counters->wakeup_rx_times, ns);
	count(&counters->wakeup_ns[direction], ns);
	port->waking_ns += ns * XSKD_SAMPLE;
	return error;
}

/* The highest since a reader asked. What was highest since the last publish belongs to the new marks too: it
 * may have been reached after the reader had read. */
static void publish_marks(struct xskd_port *port, bool begin)
{
	struct xskd_port_counters *counters = port->counters;

	for (int name = 0; name < XSKD_RINGS; name++) {
		uint64_t highest = port->highest[name];

		if (begin || highest > counters->ring_high_water[name])
			set(&counters->ring_high_water[name], highest);
		/* Empty and full are known; any other level is news again. */
		port->highest[name] = port->quiet[name].from > 1 ? port->quiet[name].from : 0;
		port->quiet[name].span = 0;
	}
}

/* Time in wakeups is an estimate from samples: it is taken out of the time of the turns they were in, as far
 * as that goes, so the regimes always sum up to the time that has passed. What does not fit in is forgotten: it
 * comes of a timed call in which the worker lost its CPU, and taken out of later turns it would leave nothing
 * of them for seconds. */
static void publish_regimes(struct xskd_forward *forward)
{
	uint64_t *spent = forward->spent_ns;

	for (uint32_t i = 0; i < forward->port_count; i++) {
		spent[XSKD_REGIME_WAKING] += forward->ports[i]->waking_ns;
		forward->ports[i]->waking_ns = 0;
	}
	for (int regime = XSKD_REGIME_WORKING; regime <= XSKD_REGIME_SPINNING; regime++) {
		uint64_t waking = spent[regime] < spent[XSKD_REGIME_WAKING] ? spent[regime] :
									      spent[XSKD_REGIME_WAKING];

		count(&forward->counters->regimes_ns[regime], spent[regime] - waking);
		count(&forward->counters->regimes_ns[XSKD_REGIME_WAKING], waking);
		spent[XSKD_REGIME_WAKING] -= waking;
		spent[regime] = 0;
	}
	spent[XSKD_REGIME_WAKING] = 0;
	count(&forward->counters->regimes_ns[XSKD_REGIME_SLEEPING], spent[XSKD_REGIME_SLEEPING]);
	spent[XSKD_REGIME_SLEEPING] = 0;
}

static void add_usage(uint64_t *counter, uint64_t *before, uint64_t now)
{
	count(counter, now - *before);
	*before = now;
}

/* What this process has used since the last time, on top of what its predecessors have. */
static void publish_usage(struct xskd_forward *forward)
{
	struct xskd_counters *counters = forward->counters;
	uint64_t now[XSKD_CPUS + XSKD_SWITCHES + XSKD_FAULTS];

	xskd_sys_usage(now);
	for (int i = 0; i < XSKD_CPUS; i++)
		add_usage(&counters->cpu_ns[i], &forward->used[i], now[i]);
	for (int i = 0; i < XSKD_SWITCHES; i++)
		add_usage(&counters->context_switches[i], &forward->used[XSKD_CPUS + i], now[XSKD_CPUS + i]);
	for (int i = 0; i < XSKD_FAULTS; i++)
		add_usage(&counters->page_faults[i], &forward->used[XSKD_CPUS + XSKD_SWITCHES + i],
			  now[XSKD_CPUS + XSKD_SWITCHES + i]);
}

void observe_publish(struct xskd_forward *forward)
{
	struct xskd_counters *counters = forward->counters;
	uint64_t wanted = __atomic_load_n(&counters->marks_wanted, __ATOMIC_RELAXED);

	for (uint32_t i = 0; i < forward->port_count; i++)
		publish_marks(forward->ports[i], wanted != counters->marks_begun);
	set(&counters->marks_begun, wanted);
	publish_regimes(forward);
	publish_usage(forward);
}

/* Readers may race each other: then one of them has asked for both. */
void xskd_new_marks(struct xskd_counters *counters)
{
	count(&counters->marks_wanted, 1);
}
