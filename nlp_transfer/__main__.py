"""`python -m nlp_transfer`, for launchers that start modules."""

from nlp_transfer.cli import main

main()
