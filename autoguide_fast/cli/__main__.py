"""`python -m autoguide_fast.cli` is `autoguide-fast`."""

import sys

from autoguide_fast_command import main

sys.exit(main())
