"""The same command on rented machines: one job description, rendered for SkyPilot or run by Modal."""
