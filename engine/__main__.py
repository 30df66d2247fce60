"""``python -m engine`` is ``edm-engine``."""

from .cli import main

main()
