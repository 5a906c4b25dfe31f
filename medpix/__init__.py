"""The command `medpix`: names for the commands of the other packages, and first help for a new user."""
