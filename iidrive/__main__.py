"""`python -m iidrive`."""

from iidrive.cli import main

main()
