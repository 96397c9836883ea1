"""`python -m iidrive`."""

from iidrive.cli.main import main

main()
