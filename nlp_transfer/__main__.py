"""`python -m nlp_transfer`, for launchers such as torchrun that start a module."""

from nlp_transfer.cli import main

main()
