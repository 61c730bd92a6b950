"""`python -m autoguide_fast.cli` is `autoguide-fast`."""

import sys

from autoguide_fast.cli.entry import main

sys.exit(main())
