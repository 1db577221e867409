"""The only thing pyproject.toml cannot say: which C modules cffi builds (see csrc/build.py)."""

from setuptools import setup

setup(cffi_modules=[f"csrc/build.py:{module}" for module in ("forward", "libbpf", "seccomp", "pcap")])
