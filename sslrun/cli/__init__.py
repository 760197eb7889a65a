"""What is typed: the Typer app, and the way from the command line to Hydra. No torch is imported here."""
