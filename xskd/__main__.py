"""`python -m xskd`."""

import sys

from xskd.cli import main

sys.exit(main())
