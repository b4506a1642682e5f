"""``python -m blpjax study.toml``: see `blpjax.studies.command`."""

import sys

from blpjax.studies.command import main

sys.exit(main())
