"""`python -m medpix` is the command `medpix`."""

from medpix.command import main

main()
