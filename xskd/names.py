"""The names that rules may use for numbers in packets: protocols, ports, EtherTypes, ICMP types, TCP flags.

Tables of our own rather than the machine's /etc/services and /etc/protocols: a configuration must mean the
same on every machine, and a name that is mistyped gets a `did you mean` from a list short enough to be read.
Numbers and names are IANA's. It must never import anything: workers load it with the rules.
"""

from __future__ import annotations

# The first name of a number is the one that xskd writes.
ETHER_TYPES = {
    "ipv4": 0x0800,
    "ip": 0x0800,
    "arp": 0x0806,
    "wol": 0x0842,
    "vlan": 0x8100,
    "ipv6": 0x86DD,
    "ip6": 0x86DD,
    "flow-control": 0x8808,
    "slow": 0x8809,
    "lacp": 0x8809,
    "mpls": 0x8847,
    "mpls-multicast": 0x8848,
    "pppoe-discovery": 0x8863,
    "pppoe-session": 0x8864,
    "eapol": 0x888E,
    "profinet": 0x8892,
    "ethercat": 0x88A4,
    "qinq": 0x88A8,
    "goose": 0x88B8,
    "lldp": 0x88CC,
    "macsec": 0x88E5,
    "ptp": 0x88F7,
    "cfm": 0x8902,
    "fcoe": 0x8906,
}

PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6-in-ip": 41,
    "rsvp": 46,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "no-next-header": 59,
    "eigrp": 88,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "udp-lite": 136,
    "udplite": 136,
}

PORTS = {
    "ftp-data": 20,
    "ftp": 21,
    "ssh": 22,
    "telnet": 23,
    "smtp": 25,
    "dns": 53,
    "domain": 53,
    "bootps": 67,
    "dhcp-server": 67,
    "bootpc": 68,
    "dhcp-client": 68,
    "tftp": 69,
    "http": 80,
    "kerberos": 88,
    "pop3": 110,
    "ntp": 123,
    "imap": 143,
    "snmp": 161,
    "snmp-trap": 162,
    "bgp": 179,
    "ptp-event": 319,
    "ptp-general": 320,
    "ldap": 389,
    "https": 443,
    "smtps": 465,
    "isakmp": 500,
    "syslog": 514,
    "dhcpv6-client": 546,
    "dhcpv6-server": 547,
    "submission": 587,
    "ldaps": 636,
    "dns-over-tls": 853,
    "imaps": 993,
    "pop3s": 995,
    "openvpn": 1194,
    "l2tp": 1701,
    "radius": 1812,
    "radius-accounting": 1813,
    "mqtt": 1883,
    "nfs": 2049,
    "gtp-control": 2123,
    "gtp-user": 2152,
    "mysql": 3306,
    "stun": 3478,
    "bfd": 3784,
    "ipsec-nat-t": 4500,
    "vxlan": 4789,
    "sip": 5060,
    "sips": 5061,
    "mdns": 5353,
    "postgresql": 5432,
    "geneve": 6081,
    "redis": 6379,
    "mqtts": 8883,
    "prometheus": 9090,
    "wireguard": 51820,
}

ICMP_TYPES = {
    "echo-reply": 0,
    "destination-unreachable": 3,
    "redirect": 5,
    "echo-request": 8,
    "router-advertisement": 9,
    "router-solicitation": 10,
    "time-exceeded": 11,
    "parameter-problem": 12,
    "timestamp-request": 13,
    "timestamp-reply": 14,
}

ICMPV6_TYPES = {
    "destination-unreachable": 1,
    "packet-too-big": 2,
    "time-exceeded": 3,
    "parameter-problem": 4,
    "echo-request": 128,
    "echo-reply": 129,
    "multicast-listener-query": 130,
    "multicast-listener-report": 131,
    "multicast-listener-done": 132,
    "router-solicitation": 133,
    "router-advertisement": 134,
    "neighbour-solicitation": 135,
    "neighbour-advertisement": 136,
    "redirect": 137,
    "multicast-listener-report-v2": 143,
}

# In the order of their bits, lowest first.
TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}

ICMP, ICMPV6 = PROTOCOLS["icmp"], PROTOCOLS["icmpv6"]
TCP = PROTOCOLS["tcp"]
WITH_PORTS = frozenset(PROTOCOLS[name] for name in ("tcp", "udp", "dccp", "sctp", "udp-lite"))


def name_of(table: dict[str, int], number: int) -> str | None:
    """The name that a table has for a number, None where it has none."""
    return next((name for name, known in table.items() if known == number), None)
