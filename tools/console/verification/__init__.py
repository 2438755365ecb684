"""How the commands that verify, export, build and refit measure a bundle."""
