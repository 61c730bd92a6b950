"""`python -m autoguide_fast.cli` is `autoguide-fast`."""

import sys

from .entry import main

sys.exit(main())
