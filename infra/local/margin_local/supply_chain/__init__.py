"""What the engine is made of: vulnerabilities of the locked packages, and secrets that got into the repository."""
