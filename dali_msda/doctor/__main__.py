"""``python -m dali_msda.doctor``."""

import sys

from .page import main

sys.exit(main())
