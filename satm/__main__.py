"""`python -m satm`."""

import sys

from satm.cli import main

sys.exit(main())
