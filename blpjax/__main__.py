"""``python -m blpjax study.toml``: see `blpjax.command`."""

import sys

from blpjax.command import main

sys.exit(main())
