"""``python -m cryofire``."""

import sys

from cryofire.cli.main import main

sys.exit(main())
