"""``python -m fedcore`` is the command ``fedcore``."""

import sys

from fedcore.cli import main

sys.exit(main())
