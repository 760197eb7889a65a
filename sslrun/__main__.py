"""`python -m sslrun`."""

from sslrun.cli import main

main()
