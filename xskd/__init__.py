"""xskd: an AF_XDP packet forwarder run like any other Linux service."""

__version__ = "0.1.0"
