"""`python -m patchbay`."""

import sys

from patchbay.cli import main

sys.exit(main())
