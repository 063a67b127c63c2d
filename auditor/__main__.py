"""`python -m auditor`, which is also what `accelerate launch -m auditor` starts."""

import sys

from auditor.cli import main

sys.exit(main())
