"""The only thing pyproject.toml cannot say: which C modules cffi builds (see csrc/build.py)."""

from setuptools import setup

setup(cffi_modules=["csrc/build.py:forward", "csrc/build.py:libbpf", "csrc/build.py:seccomp"])
