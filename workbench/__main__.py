"""``python -m workbench ...`` is the command line, for torchrun and accelerate launch."""

import sys

from workbench.app.cli import main

sys.exit(main())
